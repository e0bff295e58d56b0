//! What the server counts about its requests, and `/metrics`.
//!
//! Requests are counted in plain atomics, found by index: on the way of a cached manifest a lookup by labels, or a
//! histogram that keeps every sample, would be most of the cost. All other numbers go through the `metrics` facade.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use axum::{extract::State, response::IntoResponse};
use http::{Method, StatusCode, header::CONTENT_TYPE};
use metrics_exporter_prometheus::PrometheusHandle;

use super::service::ApiState;

/// Which part of the interface a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    Base,
    Catalog,
    Manifest,
    Blob,
    Upload,
    Tags,
    Referrers,
    /// A path below `/v2/` that is no endpoint.
    Unknown,
    /// Everything outside of `/v2/`.
    Other,
}

const ROUTES: [&str; 9] = ["base", "catalog", "manifest", "blob", "upload", "tags", "referrers", "unknown", "other"];
const METHODS: [&str; 7] = ["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "other"];
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
/// Upper bounds of the latency buckets, in microseconds.
const BOUNDS_US: [u64; 14] =
    [100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000, 30_000_000];

#[derive(Debug, Default)]
struct RouteMetrics {
    answers: [[AtomicU64; CLASSES.len()]; METHODS.len()],
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    duration_us: AtomicU64,
}

/// Counts of all requests since the start.
pub(crate) struct RequestMetrics {
    routes: [RouteMetrics; ROUTES.len()],
    in_flight: AtomicI64,
    /// Bytes of manifests and of documents sent; blobs count themselves.
    sent_bytes: AtomicU64,
    pub(crate) blob_sent: metrics::Counter,
    pub(crate) received: metrics::Counter,
}

impl RequestMetrics {
    pub(crate) fn new() -> Self {
        Self {
            routes: Default::default(),
            in_flight: AtomicI64::new(0),
            sent_bytes: AtomicU64::new(0),
            blob_sent: metrics::counter!("keppel_blob_sent_bytes_total"),
            received: metrics::counter!("keppel_request_body_bytes_total"),
        }
    }

    pub(crate) fn begin(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    pub(crate) fn end(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    pub(crate) fn record(&self, route: Route, method: &Method, status: StatusCode, duration: Duration, sent: u64) {
        let metrics = &self.routes[route as usize];
        let class = usize::from(status.as_u16() / 100).clamp(1, CLASSES.len()) - 1;
        metrics.answers[method_index(method)][class].fetch_add(1, Relaxed);
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        metrics.buckets[BOUNDS_US.partition_point(|bound| *bound < micros)].fetch_add(1, Relaxed);
        metrics.duration_us.fetch_add(micros, Relaxed);
        self.sent_bytes.fetch_add(sent, Relaxed);
    }

    fn render(&self, text: &mut String) {
        let mut line = |arguments: std::fmt::Arguments<'_>| {
            // Writing to a string does not fail.
            let _ = text.write_fmt(arguments);
            text.push('\n');
        };
        line(format_args!(
            "# HELP keppel_http_requests_total Requests answered, by endpoint, method and status class."
        ));
        line(format_args!("# TYPE keppel_http_requests_total counter"));
        for (route, metrics) in ROUTES.iter().zip(&self.routes) {
            for (method, classes) in METHODS.iter().zip(&metrics.answers) {
                for (class, count) in CLASSES.iter().zip(classes) {
                    let count = count.load(Relaxed);
                    if count > 0 {
                        line(format_args!(
                            "keppel_http_requests_total{{endpoint=\"{route}\",method=\"{method}\",status=\"{class}\"}} {count}"
                        ));
                    }
                }
            }
        }
        line(format_args!(
            "# HELP keppel_http_request_duration_seconds Time from a request's head to its answer's head."
        ));
        line(format_args!("# TYPE keppel_http_request_duration_seconds histogram"));
        for (route, metrics) in ROUTES.iter().zip(&self.routes) {
            let counts: Vec<u64> = metrics.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect();
            let total: u64 = counts.iter().sum();
            if total == 0 {
                continue;
            }
            let name = "keppel_http_request_duration_seconds";
            let mut below = 0;
            for (bound, count) in BOUNDS_US.iter().zip(&counts) {
                below += count;
                let bound = *bound as f64 / 1e6;
                line(format_args!("{name}_bucket{{endpoint=\"{route}\",le=\"{bound}\"}} {below}"));
            }
            let sum = metrics.duration_us.load(Relaxed) as f64 / 1e6;
            line(format_args!("{name}_bucket{{endpoint=\"{route}\",le=\"+Inf\"}} {total}"));
            line(format_args!("{name}_sum{{endpoint=\"{route}\"}} {sum}"));
            line(format_args!("{name}_count{{endpoint=\"{route}\"}} {total}"));
        }
        let in_flight = self.in_flight.load(Relaxed);
        let sent_bytes = self.sent_bytes.load(Relaxed);
        line(format_args!("# HELP keppel_http_requests_in_flight Requests that have not been answered yet."));
        line(format_args!("# TYPE keppel_http_requests_in_flight gauge"));
        line(format_args!("keppel_http_requests_in_flight {in_flight}"));
        line(format_args!("# HELP keppel_http_document_sent_bytes_total Bytes of manifests and other documents sent."));
        line(format_args!("# TYPE keppel_http_document_sent_bytes_total counter"));
        line(format_args!("keppel_http_document_sent_bytes_total {sent_bytes}"));
    }
}

fn method_index(method: &Method) -> usize {
    match *method {
        Method::GET => 0,
        Method::HEAD => 1,
        Method::PUT => 2,
        Method::POST => 3,
        Method::PATCH => 4,
        Method::DELETE => 5,
        _ => 6,
    }
}

/// `GET /metrics`, in the Prometheus text format.
pub(crate) async fn get_metrics(State(state): State<ApiState>) -> impl IntoResponse {
    // Reading /proc and draining histograms is quick, but not a thing for an async thread.
    let text = tokio::task::spawn_blocking(move || {
        let mut text = state.prometheus().render();
        state.metrics().render(&mut text);
        render_process(&mut text);
        text
    })
    .await;
    match text {
        Ok(text) => ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// The process's own numbers, under the names that the usual dashboards know; what cannot be read is left out.
fn render_process(text: &mut String) {
    let mut gauge = |name: &str, value: Option<f64>| {
        if let Some(value) = value {
            let _ = write!(text, "# TYPE {name} gauge\n{name} {value}\n");
        }
    };
    let resident_pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|statm| statm.split_whitespace().nth(1)?.parse::<f64>().ok());
    // SAFETY: takes a number and returns a number.
    let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as f64;
    gauge("process_resident_memory_bytes", resident_pages.map(|pages| pages * page_bytes));
    let files = std::fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as f64);
    gauge("process_open_fds", files);
}

/// Keeps the recorder's histograms small when nobody scrapes them, until `shutdown`.
pub(crate) async fn upkeep(prometheus: PrometheusHandle, shutdown: tokio_util::sync::CancellationToken) {
    let mut interval = tokio::time::interval(Duration::from_secs(5));
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = interval.tick() => prometheus.run_upkeep(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_appear_under_their_labels_and_in_the_right_bucket() {
        let metrics = RequestMetrics::new();
        metrics.record(Route::Manifest, &Method::GET, StatusCode::OK, Duration::from_micros(100), 7);
        metrics.record(Route::Manifest, &Method::GET, StatusCode::NOT_FOUND, Duration::from_secs(60), 0);
        metrics.begin();
        let mut text = String::new();
        metrics.render(&mut text);
        for line in [
            r#"keppel_http_requests_total{endpoint="manifest",method="GET",status="2xx"} 1"#,
            r#"keppel_http_requests_total{endpoint="manifest",method="GET",status="4xx"} 1"#,
            r#"keppel_http_request_duration_seconds_bucket{endpoint="manifest",le="0.0001"} 1"#,
            r#"keppel_http_request_duration_seconds_bucket{endpoint="manifest",le="30"} 1"#,
            r#"keppel_http_request_duration_seconds_bucket{endpoint="manifest",le="+Inf"} 2"#,
            r#"keppel_http_request_duration_seconds_count{endpoint="manifest"} 2"#,
            "keppel_http_requests_in_flight 1",
            "keppel_http_document_sent_bytes_total 7",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("catalog"));
    }

    #[test]
    fn the_process_reports_memory_and_files() {
        let mut text = String::new();
        render_process(&mut text);
        let value = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
        };
        assert!(value("process_resident_memory_bytes ") > 100_000.0);
        assert!(value("process_open_fds ") >= 3.0);
    }
}

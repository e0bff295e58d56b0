//! One connection from accept to close.

use std::{
    convert::Infallible,
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
};

use bytes::Bytes;
use http::HeaderValue;
use hyper::{Request, Response, body::Incoming, rt::Executor, service::Service};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::task::TaskTracker;

use super::{
    ServerOptions,
    activity::{Activity, Stage, Verdict, Watch},
    own_words::OwnWords,
    tls::Certificates,
    tracked::Tracked,
    transport::Transport,
};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Spawns the tasks of HTTP/2 streams where the server waits for them.
#[derive(Clone)]
pub(super) struct TrackedExecutor(pub(super) TaskTracker);

impl<F> Executor<F> for TrackedExecutor
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}

/// The HTTP settings that all connections share.
pub(super) fn builder(options: &ServerOptions, tasks: TaskTracker) -> auto::Builder<TrackedExecutor> {
    let mut builder = auto::Builder::new(TrackedExecutor(tasks));
    builder
        .http1()
        .timer(TokioTimer::new())
        // Deadlines are the watch's: hyper's own would arm a timer for every request.
        .header_read_timeout(None)
        // Also the size of the largest read from an upload.
        .max_buf_size(MAX_BUFFER_BYTES.max(options.header_size_max_bytes))
        // Frames are queued as they are. Flushing pipelined answers together, which nobody here sends, would copy them.
        .writev(true);
    // Hyper keeps its usual number of headers on the stack; any other costs an allocation per request.
    if options.headers_max != 100 {
        builder.http1().max_headers(options.headers_max);
    }
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(options.http2_streams_max)
        .max_header_list_size(u32::try_from(options.header_size_max_bytes).unwrap_or(u32::MAX))
        .initial_stream_window_size(2 * 1024 * 1024)
        .initial_connection_window_size(8 * 1024 * 1024)
        .max_frame_size(64 * 1024)
        .max_send_buf_size(512 * 1024)
        .keep_alive_interval(options.http2_keep_alive)
        .keep_alive_timeout(options.http2_keep_alive);
    builder
}

const MAX_BUFFER_BYTES: usize = 256 * 1024;

/// Serves a connection until it ends, is judged dead by its watch, or the server aborts it.
pub(super) async fn serve<S, B>(
    transport: Transport,
    certificates: Option<Arc<Certificates>>,
    service: S,
    activity: Arc<Activity>,
    builder: Arc<auto::Builder<TrackedExecutor>>,
    options: Arc<ServerOptions>,
    client: HeaderValue,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
    S::Future: Unpin + Send + 'static,
    B: http_body::Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<BoxError>,
{
    let service = Tracked::new(service, activity.clone());
    let Some(certificates) = certificates else {
        return drive(OwnWords::new(transport, activity.clone(), client), service, &activity, &builder, &options).await;
    };
    let handshake = tokio_rustls::TlsAcceptor::from(certificates.current()).accept(transport);
    let mut handshake = pin!(tokio::time::timeout(options.handshake_timeout, handshake));
    let handshake = poll_fn(|cx| match activity.stage(cx.waker()) {
        Stage::Running => handshake.as_mut().poll(cx).map(Some),
        Stage::Draining | Stage::Aborted => Poll::Ready(None),
    });
    match handshake.await {
        Some(Ok(Ok(stream))) => {
            drive(OwnWords::new(stream, activity.clone(), client), service, &activity, &builder, &options).await;
        }
        Some(Ok(Err(error))) => tracing::debug!(%error, "a TLS handshake failed"),
        Some(Err(_)) => tracing::debug!("a TLS handshake took too long"),
        None => {}
    }
}

async fn drive<IO, S, B>(
    stream: IO,
    service: Tracked<S>,
    activity: &Activity,
    builder: &auto::Builder<TrackedExecutor>,
    options: &ServerOptions,
) where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
    S::Future: Unpin + Send + 'static,
    B: http_body::Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<BoxError>,
{
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut watch = Watch::new(options);
    let mut tick = pin!(tokio::time::sleep(watch.period()));
    let mut draining = false;
    let mut drain = |connection: Pin<&mut auto::Connection<'_, _, _, _>>| {
        if !std::mem::replace(&mut draining, true) {
            connection.graceful_shutdown();
        }
    };
    poll_fn(|cx| {
        match activity.stage(cx.waker()) {
            Stage::Running => {}
            Stage::Draining => drain(connection.as_mut()),
            Stage::Aborted => return Poll::Ready(()),
        }
        loop {
            if let Poll::Ready(result) = connection.as_mut().poll(cx) {
                if let Err(error) = result {
                    tracing::debug!(error = crate::api::error::chain(&*error), "a connection broke off");
                }
                return Poll::Ready(());
            }
            if tick.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            tick.as_mut().reset(tokio::time::Instant::now() + watch.period());
            match watch.judge(activity.snapshot()) {
                Verdict::Stay => {}
                Verdict::Close => drain(connection.as_mut()),
                Verdict::Drop => return Poll::Ready(()),
            }
        }
    })
    .await;
}

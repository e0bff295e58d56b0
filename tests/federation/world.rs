//! Three regions as processes in a network of their own, with the times that operators get.

use std::time::{Duration, Instant};

use crate::harness::{Answer, Content};
use crate::network::Network;
use crate::region::{Region, federate};

pub struct World {
    pub network: Network,
    pub regions: Vec<Region>,
    /// A folder is removed after the processes that use it have ended.
    _folder: tempfile::TempDir,
}

/// The regions by their places.
pub const EU: usize = 0;
pub const US: usize = 1;
pub const AP: usize = 2;

impl World {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let network = Network::new(3, folder.path());
        let names = ["eu", "us", "ap"].into_iter().zip(&network.places);
        let mut regions: Vec<Region> = names.map(|(name, place)| Region::at(folder.path(), name, place)).collect();
        federate(&mut regions, 3);
        Self { network, regions, _folder: folder }
    }

    pub async fn counter(&self, which: usize, name: &str) -> u64 {
        let metrics = self.regions[which].client().get("/metrics").await.expect(200).text();
        let is_it = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
        let values = metrics.lines().filter(is_it).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        values.sum::<f64>() as u64
    }

    pub async fn until_it_answers_alone(&self, which: usize, path: &str) {
        let start = Instant::now();
        loop {
            let before = self.counter(which, "keppel_copy_answers_total").await;
            self.regions[which].client().get(path).await.expect(200);
            if self.counter(which, "keppel_copy_answers_total").await > before {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(30), "it asks for {path} at each pull");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn put(&self, which: usize, tag: &str, manifest: &Content) -> Answer {
        self.regions[which].client().put_manifest("acme/app", tag, manifest).await
    }
}

pub fn is_marked(answer: &Answer) -> bool {
    answer.header("warning").starts_with("110 ")
}

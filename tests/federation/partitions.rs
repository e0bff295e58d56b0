//! Cut ways between three regions, in network namespaces, with the times that operators get: who is cut off says so
//! within two seconds and serves what it has; the rest goes on within ten; afterwards all hold the same.

use std::time::{Duration, Instant};

use crate::harness::Image;
use crate::network::Network;
use crate::region::{Region, federate, until, until_equal};

const REFUSED_WITHIN: Duration = Duration::from_secs(2);
const DECIDED_WITHIN: Duration = Duration::from_secs(10);

struct World {
    network: Network,
    regions: Vec<Region>,
    /// A folder is removed after the processes that use it have ended.
    _folder: tempfile::TempDir,
}

impl World {
    /// Three regions that vote, each with an image of its own.
    async fn new() -> (Self, Image) {
        let folder = tempfile::tempdir().expect("a folder");
        let network = Network::new(3, folder.path());
        let names = ["eu", "us", "ap"].into_iter().zip(&network.places);
        let mut regions: Vec<Region> = names.map(|(name, place)| Region::at(folder.path(), name, place)).collect();
        federate(&mut regions, 3);
        let image = Image::small(7);
        for region in &regions {
            region.client().push_image(&format!("of-{}/app", region.name), "v1", &image).await;
        }
        (Self { network, regions, _folder: folder }, image)
    }

    fn leader(&self) -> usize {
        let name = self.regions[0].leader();
        self.regions.iter().position(|region| region.name == name).expect("one leads")
    }

    /// Claims on one side are refused quickly, from now on and later, and content is served meanwhile.
    async fn assert_refused(&self, which: usize, image: &Image, name: &str) {
        let region = &self.regions[which];
        for attempt in 0..4 {
            let claimed = region.claim(&format!("{name}{attempt}")).await;
            assert_eq!(claimed.status, 503, "{claimed:?}");
            assert!(!claimed.retry_after.is_empty(), "{claimed:?}");
            assert!(claimed.took < REFUSED_WITHIN, "{claimed:?}");
            region.client().assert_image(&format!("of-{}/app", region.name), "v1", image).await;
        }
        // What it owns it may still change, and what it knows it still says.
        region.client().push_image(&format!("of-{}/app", region.name), "v2", image).await;
        let listed = region.accounts();
        assert!(["of-eu", "of-us", "of-ap"].iter().all(|name| listed.iter().any(|(known, _)| known == name)));
    }

    /// Claims elsewhere are decided soon after `since`. Gives how soon.
    async fn assert_decided(&self, which: usize, name: &str, since: Instant) -> Duration {
        loop {
            let claimed = self.regions[which].claim(name).await;
            if claimed.status == 200 {
                assert!(since.elapsed() < DECIDED_WITHIN, "only after {:?}", since.elapsed());
                return since.elapsed();
            }
            assert!(since.elapsed() < DECIDED_WITHIN, "{}: {claimed:?}", self.regions[which].name);
        }
    }

    fn heal(&self) {
        self.network.heal();
        until("all are well again", || self.regions.iter().all(Region::is_healthy));
        let took = until_equal(&self.regions);
        println!("equal states {took:?} after all were well again");
    }
}

#[tokio::test]
async fn a_follower_that_is_cut_off_refuses_claims_and_serves_what_it_has() {
    let (world, image) = World::new().await;
    let follower = (world.leader() + 1) % 3;
    world.network.isolate(follower);
    let since = Instant::now();
    for other in (0..3).filter(|other| *other != follower) {
        let took = world.assert_decided(other, &format!("meanwhile{other}"), since).await;
        println!("with a follower cut off, another side decides after {took:?}");
    }
    world.assert_refused(follower, &image, "nowhere").await;
    world.heal();
    world.assert_decided(follower, "afterwards", Instant::now()).await;
    until_equal(&world.regions);
}

#[tokio::test]
async fn without_the_leader_the_others_elect_another_and_go_on() {
    let (world, image) = World::new().await;
    let leader = world.leader();
    world.network.isolate(leader);
    let since = Instant::now();
    let [one, other] = [(leader + 1) % 3, (leader + 2) % 3];
    let (_, one, other) = tokio::join!(
        world.assert_refused(leader, &image, "nowhere"),
        world.assert_decided(one, "elected-one", since),
        world.assert_decided(other, "elected-other", since),
    );
    println!("with the leader cut off, the others decide after {one:?} and {other:?}");
    let noise: Vec<_> = world.regions.iter().map(|region| region.log().matches("openraft").count()).collect();
    assert!(noise.iter().all(|lines| *lines <= 3), "the consensus library fills the logs: {noise:?}");
    world.heal();
}

#[tokio::test]
async fn a_leader_that_hears_nobody_makes_way_and_so_does_one_that_nobody_hears() {
    let (world, image) = World::new().await;
    for (deaf, what) in [(true, "deaf"), (false, "mute")] {
        let leader = world.leader();
        for other in (0..3).filter(|other| *other != leader) {
            match deaf {
                true => world.network.cut(other, leader),
                false => world.network.cut(leader, other),
            }
        }
        let since = Instant::now();
        let name = format!("{what}-nowhere");
        let refused = world.assert_refused(leader, &image, &name);
        let (_, took) = tokio::join!(refused, world.assert_decided((leader + 1) % 3, what, since));
        println!("with a {what} leader, another side decides after {took:?}");
        world.heal();
    }
}

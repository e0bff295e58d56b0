use std::time::Duration;

/// How nodes watch over each other. The defaults suit regions up to 300 ms apart, with bad minutes.
#[derive(Debug, Clone)]
pub struct MembershipOptions {
    /// How often a node looks whether one other node, chosen at random, lives. Well above twice `probe_round_trip`.
    pub probe_interval: Duration,
    /// How long a direct answer may take before others are asked to look, too.
    pub probe_round_trip: Duration,
    /// How many others are asked.
    pub indirect_probes: usize,
    /// How long a node that did not answer is suspected before it counts as down.
    pub suspicion: Duration,
    /// How often news are passed on.
    pub gossip_interval: Duration,
    /// To how many nodes at a time.
    pub gossip_fanout: usize,
    /// How often members of whom nothing is heard are greeted.
    pub announce_interval: Duration,
    /// How often a node repeats what it says of itself, for those who missed it.
    pub publish_interval: Duration,
    /// The largest datagram. A fresh QUIC connection carries some 1,160 bytes.
    pub packet_bytes_max: usize,
    /// How often seeds are resolved again and tried, while members are missing.
    pub seed_interval: Duration,
}

impl Default for MembershipOptions {
    fn default() -> Self {
        Self {
            probe_interval: Duration::from_secs(3),
            probe_round_trip: Duration::from_secs(1),
            indirect_probes: 3,
            suspicion: Duration::from_secs(12),
            gossip_interval: Duration::from_millis(500),
            gossip_fanout: 3,
            announce_interval: Duration::from_secs(5),
            publish_interval: Duration::from_secs(30),
            packet_bytes_max: 1100,
            seed_interval: Duration::from_secs(10),
        }
    }
}

impl MembershipOptions {
    /// The defaults, with times as short as a network within one machine allows: for tests.
    pub fn short() -> Self {
        Self {
            probe_interval: Duration::from_millis(300),
            probe_round_trip: Duration::from_millis(100),
            suspicion: Duration::from_millis(900),
            gossip_interval: Duration::from_millis(100),
            announce_interval: Duration::from_millis(300),
            publish_interval: Duration::from_secs(2),
            seed_interval: Duration::from_millis(500),
            ..Self::default()
        }
    }
}

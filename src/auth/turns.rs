use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use super::AuthError;
use crate::model::{Share, Shares};

/// How many credentials from one place are checked or queue for that at a time.
const CHECKS_EACH: usize = 4;
/// How long one waits for the others of the same place.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// Lets requests from one place have a few checks of credentials at a time, so that somebody who shows wrong ones without
/// end fills their own queue, and not the one that all wait in for a slow hash.
///
/// A place is an IPv4 address, or the 64 bits of an IPv6 address that say which network.
#[derive(Debug)]
pub(super) struct Turns {
    places: Shares<IpAddr>,
}

impl Turns {
    pub(super) fn new() -> Self {
        Self { places: Shares::new(CHECKS_EACH) }
    }

    /// Waits for a turn of the place that `address` is in; it lasts until what is returned is dropped.
    ///
    /// Cancel safety: may be dropped; the turn then goes to the next.
    ///
    /// # Errors
    /// [`AuthError::Overloaded`] when too many of that place are before this one.
    pub(super) async fn take(&self, address: IpAddr) -> Result<Share<'_, IpAddr>, AuthError> {
        let mut turn = self.places.of(place_of(address));
        tokio::time::timeout(WAIT_MAX, turn.take_more(1)).await.map_err(|_| AuthError::Overloaded)?;
        Ok(turn)
    }
}

fn place_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_place_waits_for_itself_and_others_do_not() {
        let turns = Turns::new();
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut taken = Vec::new();
        for host in 1..=CHECKS_EACH {
            taken.push(turns.take(address(&format!("2001:db8::{host}"))).await.unwrap());
        }
        assert_eq!(turns.take(address("2001:db8::ffff")).await.unwrap_err(), AuthError::Overloaded);
        assert!(turns.take(address("2001:db8:0:1::1")).await.is_ok(), "another network");
        assert!(turns.take(address("192.0.2.1")).await.is_ok());
        assert!(turns.take(address("::ffff:192.0.2.1")).await.is_ok());
        let mut waiting = Box::pin(turns.take(address("2001:db8::9")));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        taken.pop();
        waiting.await.unwrap();
    }
}

//! The flights under way, and who may have one.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use keppel_federation::vocabulary::{AccountName, Digest, RepositoryName};

use super::Elsewhere;
use super::berths::{Berth, Berths};
use super::flight::{Flight, Key, Progress};
use super::links::Links;
use super::priority::Places;
use super::standing::Standing;
use crate::registry::{Inner, RegistryError};

/// The flights under way.
pub(in crate::registry) struct Flights {
    known: Mutex<HashMap<Key, Weak<Flight>>>,
    berths: Berths,
    places: Places,
    standing: Arc<Standing>,
    links: Arc<Links>,
}

impl Flights {
    /// No flights yet; `budget`: bytes per second on each link for what nobody waits for; `pulled_max`: how many there may
    /// be at a time that clients pull.
    pub(in crate::registry) fn new(budget: Option<u64>, pulled_max: usize) -> Self {
        let links = Arc::new(Links::new(budget));
        let (known, places, standing) = Default::default();
        Self { known, berths: Berths::new(pulled_max), places, standing, links }
    }

    /// Who goes first.
    pub(super) fn places(&self) -> &Places {
        &self.places
    }

    /// The links that all flights share.
    pub(super) fn links(&self) -> &Arc<Links> {
        &self.links
    }

    /// The flight of a blob into a repository, made and asked about if there is none. The other node is asked whether
    /// the repository has the blob; while the flight lives, nobody asks again. Where that node is the account's primary, the
    /// blob may come from any node that has it.
    ///
    /// Cancel safety: dropping it leaves the flight to others who wait.
    ///
    /// # Errors
    /// What the other node says.
    pub(in crate::registry) async fn join(
        &self,
        source: Elsewhere,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Arc<Flight>, RegistryError> {
        let flight = self.find_or_make(source, repository, digest);
        flight.load_head().await?;
        Ok(flight)
    }

    /// A place for one more blob that a client pulls, waited for when there is none.
    ///
    /// # Errors
    /// [`RegistryError::TooManyTransfers`].
    pub(in crate::registry) async fn enter_for_client(&self, account: &AccountName) -> Result<Berth, RegistryError> {
        self.berths.enter(account).await
    }

    /// The same for a client, who waits until there is room for one more.
    ///
    /// # Errors
    /// [`RegistryError::TooManyTransfers`], and what the other node says.
    async fn join_for_client(
        &self,
        source: Elsewhere,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Arc<Flight>, RegistryError> {
        let account = repository.account();
        let flight = self.find_or_berth(source, repository, digest, self.berths.enter(&account)).await?;
        flight.load_head().await?;
        Ok(flight)
    }

    /// Lets go of a flight whose blob was stored, for what it stored was damaged since.
    pub(in crate::registry) fn forget_stored(&self, repository: &RepositoryName, digest: &Digest) {
        let key = (repository.clone(), *digest);
        let mut known = self.lock();
        let flight = known.get(&key).and_then(Weak::upgrade);
        if flight.is_some_and(|flight| *flight.progress.borrow() == Progress::Stored) {
            known.remove(&key);
        }
    }

    /// Whether there is a flight whose blob was stored.
    fn has_stored(&self, repository: &RepositoryName, digest: &Digest) -> bool {
        let flight = self.lock().get(&(repository.clone(), *digest)).and_then(Weak::upgrade);
        flight.is_some_and(|flight| *flight.progress.borrow() == Progress::Stored)
    }

    /// The same for another node of this region, which waits for this one, but not for room: it fetches the blob itself.
    pub(super) async fn lead(
        &self,
        source: Elsewhere,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Arc<Flight>, RegistryError> {
        let on_the_way = RegistryError::BlobOnTheWay { digest: *digest };
        let berth = async { self.berths.try_enter(&repository.account()).ok_or(on_the_way) };
        let flight = self.find_or_berth(source, repository, digest, berth).await?;
        flight.leads.send_replace(true);
        flight.load_head().await?;
        Ok(flight)
    }

    /// The flight of a blob that is on its way here, if there is one. It may not know yet what the blob is.
    pub(super) fn under_way(&self, repository: &RepositoryName, digest: &Digest) -> Option<Arc<Flight>> {
        let flight = self.lock().get(&(repository.clone(), *digest)).and_then(Weak::upgrade)?;
        let is_coming = flight.started.load(Ordering::SeqCst) || *flight.leads.borrow();
        (is_coming && !flight.has_failed()).then_some(flight)
    }

    fn find(&self, source: &Elsewhere, repository: &RepositoryName, digest: &Digest) -> Option<Arc<Flight>> {
        let flight = self.lock().get(&(repository.clone(), *digest)).and_then(Weak::upgrade)?;
        flight.is_usable_for(source).then_some(flight)
    }

    /// The flight, or one with this berth.
    async fn find_or_berth(
        &self,
        source: Elsewhere,
        repository: &RepositoryName,
        digest: &Digest,
        berth: impl Future<Output = Result<Berth, RegistryError>>,
    ) -> Result<Arc<Flight>, RegistryError> {
        if let Some(flight) = self.find(&source, repository, digest) {
            return Ok(flight);
        }
        let berth = berth.await?;
        // Somebody may have made it meanwhile.
        let flight = self.find_or_make(source, repository, digest);
        flight.take_berth(berth);
        Ok(flight)
    }

    fn find_or_make(&self, source: Elsewhere, repository: &RepositoryName, digest: &Digest) -> Arc<Flight> {
        let key = (repository.clone(), *digest);
        let mut known = self.lock();
        match known.get(&key).and_then(Weak::upgrade).filter(|flight| flight.is_usable_for(&source)) {
            Some(flight) => flight,
            None => {
                known.retain(|_, flight| flight.strong_count() > 0);
                let flight = Arc::new(Flight::new(source, key.clone(), self.standing.clone(), self.links.clone()));
                known.insert(key, Arc::downgrade(&flight));
                flight
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Weak<Flight>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Lets go of a flight that has stored its blob when the blob is here no longer. Slow clients may hold such a flight for
    /// long, and whoever joins it is promised bytes that nobody fetches.
    pub(super) async fn forget_if_gone(&self, repository: &RepositoryName, digest: &Digest) {
        if self.flights.has_stored(repository, digest)
            && let Err(RegistryError::BlobUnknown { .. }) = self.blob_here(repository, digest).await
        {
            self.flights.forget_stored(repository, digest);
        }
    }

    /// Joins the flight of a blob that was not here when it was looked for. It may have come meanwhile, and its flight have
    /// ended by that.
    ///
    /// # Errors
    /// What `source` says, or why it cannot be asked.
    pub(in crate::registry) async fn join_flight(
        &self,
        source: Elsewhere,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Arc<Flight>, RegistryError> {
        self.forget_if_gone(repository, digest).await;
        self.flights.join(source, repository, digest).await
    }

    /// The same for a client that pulls, who waits until there is room for one more flight.
    ///
    /// # Errors
    /// [`RegistryError::TooManyTransfers`], what `source` says, or why it cannot be asked.
    pub(in crate::registry) async fn join_flight_for_client(
        &self,
        source: Elsewhere,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Arc<Flight>, RegistryError> {
        self.forget_if_gone(repository, digest).await;
        self.flights.join_for_client(source, repository, digest).await
    }
}

//! Who may shake hands: TLS 1.3 with raw public keys (RFC 7250) on both sides, and nothing but keys.
//!
//! There are two protocols (ALPN). As a *member* only an admitted key gets through the handshake: a stranger is refused
//! in it, before it can send a byte to us. To *join*, any key gets through, but finds one small door behind it.
//! Which of the two a client wants is in its first message, what key it has in a later one; so every handshake has its
//! own verifier, which remembers the first for the second.
//!
//! Sessions are never resumed: every connection proves its key afresh, so a removed member has nothing left to use.
//! 0-RTT is therefore impossible, and nothing can be replayed.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
};

use crate::identity::{NodeKey, node_of_public_key_info};
use crate::vocabulary::NodeId;

const MEMBER: &[u8] = b"keppel-member/1";
const JOIN: &[u8] = b"keppel-join/1";
/// Sent as server name, where a name is needed. It says nothing: keys are what counts.
pub(super) const SERVER_NAME: &str = "keppel";

/// What a client wants of us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Member,
    Join,
}

impl Purpose {
    fn protocol(self) -> &'static [u8] {
        match self {
            Self::Member => MEMBER,
            Self::Join => JOIN,
        }
    }
}

/// The keys that may connect and be connected to.
#[derive(Debug, Clone, Default)]
pub(super) struct Admitted(Arc<RwLock<HashSet<NodeId>>>);

impl Admitted {
    pub fn contains(&self, node: NodeId) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains(&node)
    }

    pub fn replace(&self, nodes: impl IntoIterator<Item = NodeId>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = nodes.into_iter().collect();
    }
}

/// Makes the TLS side of connections.
pub(super) struct Tls {
    provider: Arc<CryptoProvider>,
    certified: Arc<CertifiedKey>,
    admitted: Admitted,
    members_only: Arc<QuicServerConfig>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("admitted", &self.admitted).finish_non_exhaustive()
    }
}

impl Tls {
    pub fn new(key: &NodeKey, admitted: Admitted) -> Result<Arc<Self>, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let certified = Arc::new(key.certified()?);
        let never_joining = Arc::new(AtomicBool::new(false));
        let members_only = server_config(&provider, &certified, &admitted, never_joining, &[MEMBER])?;
        Ok(Arc::new(Self { provider, certified, admitted, members_only: Arc::new(members_only) }))
    }

    /// The TLS side of a connection to `expected`, or to any member.
    pub fn client(&self, expected: Option<NodeId>, purpose: Purpose) -> Result<QuicClientConfig, Error> {
        let schemes = self.provider.signature_verification_algorithms;
        let verifier = Pinned { expected, admitted: self.admitted.clone(), schemes };
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(self.certified.clone())));
        config.alpn_protocols = vec![purpose.protocol().to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        QuicClientConfig::try_from(config).map_err(|e| Error::General(e.to_string()))
    }
}

impl quinn::crypto::ServerConfig for Tls {
    fn initial_keys(
        &self,
        version: u32,
        dst_cid: &quinn::ConnectionId,
    ) -> Result<quinn::crypto::Keys, quinn::crypto::UnsupportedVersion> {
        self.members_only.initial_keys(version, dst_cid)
    }

    fn retry_tag(&self, version: u32, orig_dst_cid: &quinn::ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.members_only.retry_tag(version, orig_dst_cid, packet)
    }

    fn start_session(
        self: Arc<Self>,
        version: u32,
        params: &quinn_proto::transport_parameters::TransportParameters,
    ) -> Box<dyn quinn::crypto::Session> {
        let joining = Arc::new(AtomicBool::new(false));
        let config = server_config(&self.provider, &self.certified, &self.admitted, joining, &[MEMBER, JOIN])
            .map_or_else(|_| self.members_only.clone(), Arc::new);
        config.start_session(version, params)
    }
}

fn server_config(
    provider: &Arc<CryptoProvider>,
    certified: &Arc<CertifiedKey>,
    admitted: &Admitted,
    joining: Arc<AtomicBool>,
    protocols: &[&[u8]],
) -> Result<QuicServerConfig, Error> {
    let verifier = Gate {
        admitted: admitted.clone(),
        joining: joining.clone(),
        schemes: provider.signature_verification_algorithms,
    };
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(Doorbell { certified: certified.clone(), joining }));
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    QuicServerConfig::try_from(config).map_err(|e| Error::General(e.to_string()))
}

/// Sees the client's first message: notes whether it wants to join.
#[derive(Debug)]
struct Doorbell {
    certified: Arc<CertifiedKey>,
    joining: Arc<AtomicBool>,
}

impl ResolvesServerCert for Doorbell {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut offered: Vec<&[u8]> = hello.alpn()?.take(4).collect();
        // Whoever offers both is treated as a member, like the choice of the protocol does.
        offered.retain(|protocol| *protocol == MEMBER || *protocol == JOIN);
        let joining = !offered.is_empty() && !offered.contains(&MEMBER);
        self.joining.store(joining, Ordering::Relaxed);
        Some(self.certified.clone())
    }

    fn only_raw_public_keys(&self) -> bool {
        true
    }
}

/// What the verifiers of both sides have in common, in two traits of the TLS library: signatures are ed25519, by the raw
/// key that was shown, in TLS 1.3.
macro_rules! only_raw_ed25519_keys {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::General("TLS 1.2 is not spoken here".into()))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let key = SubjectPublicKeyInfoDer::from(cert.as_ref());
            verify_tls13_signature_with_raw_key(message, &key, dss, &self.schemes)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }

        fn requires_raw_public_keys(&self) -> bool {
            true
        }
    };
}

/// Sees the client's key: lets members through, and whoever wants to join.
#[derive(Debug)]
struct Gate {
    admitted: Admitted,
    joining: Arc<AtomicBool>,
    schemes: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for Gate {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let node = node_of_public_key_info(end_entity).ok_or(CertificateError::BadEncoding)?;
        match self.joining.load(Ordering::Relaxed) || self.admitted.contains(node) {
            true => Ok(ClientCertVerified::assertion()),
            false => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    only_raw_ed25519_keys!();
}

/// Accepts exactly one key, or exactly those of members.
#[derive(Debug)]
struct Pinned {
    expected: Option<NodeId>,
    admitted: Admitted,
    schemes: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let node = node_of_public_key_info(end_entity).ok_or(CertificateError::BadEncoding)?;
        let accepted = self.expected.map_or_else(|| self.admitted.contains(node), |expected| node == expected);
        match accepted {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    only_raw_ed25519_keys!();
}

/// The node at the other end, which has proved to hold its key.
pub(super) fn peer_of(connection: &quinn::Connection) -> Option<NodeId> {
    let identity = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    node_of_public_key_info(identity.first()?)
}

/// What the client at the other end wants.
pub(super) fn purpose_of(connection: &quinn::Connection) -> Option<Purpose> {
    let data = connection.handshake_data()?.downcast::<HandshakeData>().ok()?;
    match data.protocol.as_deref()? {
        MEMBER => Some(Purpose::Member),
        JOIN => Some(Purpose::Join),
        _ => None,
    }
}

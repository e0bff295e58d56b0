//! How connections end, in words.

use quinn::{ConnectionError, TransportErrorCode, VarInt};

use crate::transport::TransportError;
use crate::vocabulary::NodeId;

/// Why this side closes a connection. The numbers go over the wire and keep their meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Close {
    /// The node stops.
    Shutdown,
    /// The other side is no member (any more).
    NotAMember,
    /// There is a second connection for the same pair of nodes.
    Duplicate,
    /// Too many or too slow newcomers.
    Overloaded,
    /// All is said.
    Done,
}

impl Close {
    fn code(self) -> VarInt {
        VarInt::from_u32(match self {
            Self::Done => 0,
            Self::Shutdown => 1,
            Self::NotAMember => 2,
            Self::Duplicate => 3,
            Self::Overloaded => 4,
        })
    }

    fn words(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Shutdown => "the node is stopping",
            Self::NotAMember => "your node is not a member of this federation",
            Self::Duplicate => "there is another connection",
            Self::Overloaded => "too many nodes ask to join, try again later",
        }
    }

    pub fn connection(self, connection: &quinn::Connection) {
        connection.close(self.code(), self.words().as_bytes());
    }

    pub fn endpoint(self, endpoint: &quinn::Endpoint) {
        endpoint.close(self.code(), self.words().as_bytes());
    }
}

/// The cause in words, and whether the other side does not want us.
pub(super) fn describe(error: &ConnectionError) -> (String, bool) {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            let refused = close.error_code == Close::NotAMember.code() || close.error_code == Close::Overloaded.code();
            (String::from_utf8_lossy(&close.reason).chars().take(200).collect(), refused)
        }
        // Access denied is what both verifiers say of a key that is not the right one.
        ConnectionError::ConnectionClosed(close)
            if close.error_code == alert(rustls::AlertDescription::AccessDenied) =>
        {
            ("it does not know this node as a member of its federation".into(), true)
        }
        ConnectionError::ConnectionClosed(close) if close.error_code == TransportErrorCode::CONNECTION_REFUSED => {
            ("it is overloaded".into(), true)
        }
        ConnectionError::TransportError(e) if e.code == alert(rustls::AlertDescription::AccessDenied) => {
            ("another node than the expected one answers there".into(), false)
        }
        ConnectionError::TimedOut => ("no answer".into(), false),
        ConnectionError::LocallyClosed => ("the connection was closed here".into(), false),
        ConnectionError::Reset => ("it has restarted".into(), false),
        other => (other.to_string(), false),
    }
}

fn alert(description: rustls::AlertDescription) -> TransportErrorCode {
    TransportErrorCode::crypto(u8::from(description))
}

/// The error of a request whose connection ended.
pub(super) fn request_error(node: NodeId, error: &ConnectionError) -> TransportError {
    let (cause, refused) = describe(error);
    match refused {
        true => TransportError::Refused { node, reason: cause },
        false => TransportError::Unreachable { node, cause },
    }
}

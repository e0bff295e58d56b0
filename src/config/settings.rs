//! Every key there is. This listing is the one place where a key's words, type, default and bounds are written.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use keppel_federation::vocabulary::AccountName;

use super::table::{Assembler, Key, Section, sections};
use super::value::{ByteSize, choice};

choice! {
    /// Where blobs are kept.
    StorageDriver: "a storage driver: write \"filesystem\" or \"memory\"" {
        /// In a folder.
        Filesystem = "filesystem",
        /// In memory, lost at exit.
        Memory = "memory",
    }
}

choice! {
    /// How log lines are written.
    LogFormat: "a log format: write \"text\" or \"json\"" {
        /// For people.
        Text = "text",
        /// One JSON object a line, for programs.
        Json = "json",
    }
}

sections! {
    /// The process itself.
    node: Node {
        /// The folder that holds everything this node keeps: metadata, blobs, and a lock that lets only one
        /// process in.
        data: PathBuf = "/var/lib/keppel";
        /// Threads that serve requests. Default: one for each CPU.
        threads: Option<usize> = "", from 1 to 1024, example 4;
        /// Threads for work that blocks: hashing, reading and writing files.
        blocking_threads_max: usize = 64, from 4 to 4096;
        /// How long requests that run may take to end after SIGTERM or SIGINT; then they are cut off.
        shutdown_grace: Duration = "30s", from "0s" to "1h";
    }

    /// The registry's HTTP door.
    http: Http {
        /// Address and port. "[::]:5000" is every address of this machine.
        listen: SocketAddr = "127.0.0.1:5000";
        /// The certificate chain in PEM, for HTTPS. Set both it and the key, or neither.
        tls_certificate: Option<PathBuf> = "", example "tls/certificate.pem";
        /// The private key in PEM.
        tls_key: Option<PathBuf> = "", example "tls/key.pem";
    }

    /// Where blobs are kept.
    storage: Storage {
        /// "filesystem", or "memory", which forgets all at exit.
        driver: StorageDriver = "filesystem";
        /// The folder of the filesystem driver. Default: "storage" in the node's data folder.
        path: Option<PathBuf> = "", example "/srv/keppel/storage";
    }

    /// What is pushed and pulled.
    registry: Registry {
        /// The account that names without one belong to: with "library", `host/alpine` is `host/library/alpine`.
        /// Default: none, such names are refused.
        default_account: Option<AccountName> = "", example "library";
        /// Whether the first push to an account creates it.
        create_accounts_on_push: bool = true;
        /// The greatest manifest that is taken.
        manifest_size_max: ByteSize = "4MiB", from "64KiB" to "64MiB";
    }

    /// What is written to standard error.
    log: Log {
        /// "text" for people, "json" for programs.
        format: LogFormat = "text";
        /// Which lines: error, warn, info, debug or trace, for all or by part, such as "info,keppel::api=debug".
        filter: String = "info";
    }
}

//! Every key there is. This listing is the one place where a key's words, type, default and bounds are written.

use std::path::PathBuf;
use std::time::Duration;

use keppel_federation::membership::seeds::Seed;
use keppel_federation::vocabulary::{AccountName, Region};

use crate::api::serve::ListenAddress;
use crate::api::{RateLimit, TrustedProxy};
use crate::auth::{GroupRule, HtpasswdGrant, WorkloadRule};
use crate::model::policy::Secret;
use ipnet::IpNet;

use super::table::{Assembler, Key, Section, sections};
use super::value::{ByteSize, HostName, UdpAddress, choice};

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
    /// How callers show who they are.
    AuthDriverName: "an auth driver: write \"open\", \"htpasswd\", \"local\" or \"oidc\"" {
        /// Everybody may do everything.
        Open = "open",
        /// Users of a password file.
        Htpasswd = "htpasswd",
        /// Users and robots that all regions share.
        Local = "local",
        /// Those whom an OpenID Connect provider knows, and those of "local".
        Oidc = "oidc",
    }
}

choice! {
    /// The headers in which proxies tell whom they speak for.
    ProxyHeadersName: "a family of headers: write \"x-forwarded\" or \"forwarded\"" {
        /// Those that begin with X-Forwarded.
        XForwarded = "x-forwarded",
        /// The one of RFC 7239.
        Forwarded = "forwarded",
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
        /// Threads for work that blocks: hashing, reading and writing files, SQLite. They come and go as needed.
        blocking_threads_max: usize = 192, from 8 to 4096;
        /// How long requests that run may take to end after SIGTERM or SIGINT; then they are cut off.
        shutdown_grace: Duration = "30s", from "0s" to "1h";
    }

    /// The registry's HTTP door.
    http: Http {
        /// Addresses to listen on, as IP address and port (`[::]:5000` is every address of this machine) or as
        /// "unix:" and a path.
        listen: Vec<ListenAddress> = ["127.0.0.1:5000"];
        /// Names under which clients reach this registry, such as "registry.example.org". acme.registry.example.org then
        /// stands for the account acme: names of repositories are those within it, which lets an account be the mirror
        /// of a Docker daemon.
        public_hosts: Vec<HostName> = [];
        /// The certificate chain in PEM; with it, all TCP addresses serve HTTPS. Set both it and the key, or neither.
        tls_certificate: Option<PathBuf> = "", example "tls/certificate.pem";
        /// The private key in PEM.
        tls_key: Option<PathBuf> = "", example "tls/key.pem";
        /// How often the two files are looked at for a change.
        tls_reload_interval: Duration = "30s", from "1s" to "1d";
        /// Connections open at a time. One more gets a 503.
        connections_max: usize = 16384, from 1 to 1000000;
        /// All header names and values of a request.
        header_size_max: ByteSize = "64KiB", from "4KiB" to "1MiB";
        /// Header lines of a request.
        headers_max: usize = 100, from 16 to 1000;
        /// How long a TLS handshake may take.
        handshake_timeout: Duration = "10s", from "1s" to "5m";
        /// How long the head of a request may take to arrive.
        header_timeout: Duration = "10s", from "1s" to "5m";
        /// How long a connection may stay open without a request.
        idle_timeout: Duration = "2m", from "1s" to "1h";
        /// How long a body, in either direction, may make no progress.
        body_idle_timeout: Duration = "1m", from "1s" to "1h";
        /// How often a quiet HTTP/2 client is asked whether it is still there.
        http2_keep_alive: Duration = "30s", from "1s" to "1h";
        /// Requests at a time on one HTTP/2 connection.
        http2_streams_max: usize = 256, from 1 to 10000;
        /// What clients are told about the least size of an upload's chunks. A hint, smaller ones are taken.
        upload_chunk_min: ByteSize = "1MiB", from "1B" to "1GiB";
        /// Proxies whose word is taken for where requests come from: networks, addresses, or "unix" for those that come
        /// through a Unix socket.
        trusted_proxies: Vec<TrustedProxy> = [];
        /// What these proxies write: "x-forwarded" (X-Forwarded-For, X-Forwarded-Proto, X-Forwarded-Host) or "forwarded"
        /// (RFC 7239). The other family is what clients write, and is not believed.
        proxy_headers: ProxyHeadersName = "x-forwarded";
        /// Tags that one push may set with ?tag=.
        tags_per_push_max: usize = 100, from 1 to 1000;
    }

    /// Who may do what.
    auth: AuthSettings {
        /// "open": everybody may do everything. "htpasswd": the users of a bcrypt password file; what they may do is
        /// decided by htpasswd_grants and by the policies of accounts. "local": users and robots that all regions
        /// share, made with `keppel user add` and `keppel robot add`; what they may do is decided by their roles and by
        /// the policies of accounts. "oidc": these, people of an OpenID Connect provider, and workloads with tokens of a
        /// cluster or build service.
        driver: AuthDriverName = "open";
        /// The password file of the htpasswd driver, made with `htpasswd -B`. It is read again when it changes.
        htpasswd_file: Option<PathBuf> = "", example "/etc/keppel/htpasswd";
        /// What the users of the password file are: "alice=operator", who may do everything, or "bob=acme:editor",
        /// viewer, editor or admin of the accounts of an auth tenant. * is every user of the file. Accounts that a push
        /// makes belong to the tenant "default". The htpasswd driver needs one at least.
        htpasswd_grants: Vec<HtpasswdGrant> = [];
        /// The OpenID Connect provider by which people log in: its issuer, an https URL (or http on this machine).
        oidc_issuer: Option<String> = "", example "https://id.example.org";
        /// What the registry is called there: a public client with the device flow. ID tokens must be made for it.
        oidc_client_id: String = "keppel";
        /// What `keppel login --device` asks the provider for.
        oidc_scopes: Vec<String> = ["openid", "profile"];
        /// The claim of ID tokens that holds the user name. With "email", the address must have been verified.
        oidc_username_claim: String = "preferred_username";
        /// The claim of ID tokens that holds the groups. A dot leads into an object, as in "realm_access.roles".
        oidc_groups_claim: String = "groups";
        /// What the members of groups are: "GROUP=operator", or "GROUP=TENANT:ROLE" with viewer, editor or admin. A login
        /// replaces the roles that the user had.
        oidc_roles: Vec<GroupRule> = [];
        /// Whether people without a role are let in: policies of accounts may still grant them something.
        oidc_roleless_users: bool = false;
        /// How long after a login people need not log in again: refresh tokens end with it.
        oidc_session: Duration = "12h", from "10m" to "90d";
        /// By how much the clocks of issuers of tokens may differ from ours.
        oidc_clock_skew: Duration = "1m", from "0s" to "10m";
        /// Certificates to trust for issuers of tokens besides those of the system, in PEM.
        oidc_ca_file: Option<PathBuf> = "", example "/etc/keppel/issuers.pem";
        /// Rules by which workloads are let in as robots with a token of a cluster or build service: words as in
        /// `issuer=https://ci.example.org audience=keppel claim.sub=repo:acme/.* robot=acme+ci allow=pull+push
        /// repository=web account=acme-prod`. Claims are matched by regular expressions, at least one. allow is pull
        /// without a word; repository, a regular expression without the account, and account are all of the tenant.
        workloads: Vec<WorkloadRule> = [];
        /// The name of the service that goes into tokens. The same in all regions: their tokens are good for it only.
        service: String = "keppel";
        /// The URL of the token endpoint, where clients reach it by another host than that of their requests.
        token_url: Option<String> = "", example "https://registry.example.org/keppel/v1/auth";
        /// For how long a region that is cut off from most others goes on letting in whom it knew then. Whoever is removed or
        /// changed loses their rights at once in all regions that are not, and in such a one when this time is over: then it
        /// serves only what everybody may pull.
        trust_when_cut_off: Duration = "1d", from "5s" to "3650d";
        /// How long a token is good. A user who is removed or changed loses theirs at once, however long they are good: see
        /// `trust_when_cut_off`.
        token_lifetime: Duration = "10m", from "1m" to "1d";
        /// How long a refresh token is good, with which a client gets new tokens.
        refresh_token_lifetime: Duration = "14d", from "1h" to "365d";
        /// How long a key signs tokens before the next one takes over.
        key_rotation: Duration = "30d", from "2d" to "3650d";
        /// How long a good password is taken without being checked again.
        password_cache: Duration = "1m", from "0s" to "1h";
        /// Passwords that are checked at a time; each takes a CPU. Default: one for every two CPUs.
        password_checks_max: Option<usize> = "", from 1 to 1024, example 2;
        /// Passwords that may wait to be checked; one more is answered with 429.
        password_checks_waiting_max: usize = 256, from 1 to 100000;
    }

    /// Where blobs are kept.
    storage: Storage {
        /// "filesystem", or "memory", which forgets all at exit.
        driver: StorageDriver = "filesystem";
        /// The folder of the filesystem driver. Default: "storage" in the node's data folder.
        path: Option<PathBuf> = "", example "/srv/keppel/storage";
        /// How much the memory driver holds; more is refused.
        memory_capacity: ByteSize = "1GiB", from "1MiB" to "1TiB";
        /// Reads of blobs at a time; each holds one piece of 256 KiB.
        concurrent_reads_max: usize = 64, from 1 to 1024;
        /// Writes at a time: appending, hashing, making durable.
        concurrent_writes_max: usize = 64, from 1 to 1024;
        /// How long a read or a write may wait for its turn before it is refused.
        wait_timeout: Duration = "30s", from "1s" to "10m";
        /// How long a blob's bytes that were found to be right are sent without being hashed once more, if nobody has
        /// written to the file since and the system has it in memory. With 0s all that is sent is hashed.
        verified_for: Duration = "1h", from "0s" to "365d";
    }

    /// What this node knows about what it keeps, in SQLite.
    metadata: MetadataSettings {
        /// The database. Default: "metadata.db" in the node's data folder. It must be on a local file system.
        path: Option<PathBuf> = "", example "/srv/keppel/metadata.db";
        /// Reads at a time.
        readers: usize = 4, from 1 to 64;
        /// Reads that may wait for their turn; one more is answered with 503.
        reads_waiting_max: usize = 4096, from 1 to 1000000;
        /// Writes that may wait in the queue; further ones wait to get into it.
        write_queue_max: usize = 1024, from 1 to 100000;
        /// Writes that share one transaction, and so one fsync.
        group_commit_max: usize = 256, from 1 to 10000;
        /// Memory for pages of the database, for the writer and for each reader.
        page_cache: ByteSize = "4MiB", from "256KiB" to "4GiB";
    }

    /// What is pushed and pulled.
    registry: RegistrySettings {
        /// The account that names without one belong to: with "library", `host/alpine` is `host/library/alpine`.
        /// Default: none, such names are refused.
        default_account: Option<AccountName> = "", example "library";
        /// Accounts that are made at the start, where they are not there yet.
        accounts: Vec<AccountName> = [];
        /// Whether the first push to an account makes it.
        create_accounts_on_push: bool = true;
        /// The largest manifest.
        manifest_size_max: ByteSize = "4MiB", from "64KiB" to "64MiB";
        /// The largest blob.
        blob_size_max: ByteSize = "1TiB", from "1MiB" to "1024TiB";
        /// Whether an index may list manifests that the repository does not hold.
        sparse_indexes: bool = false;
        /// Upload sessions held open at a time; an idle one is closed, and can be continued, to make room.
        uploads_max: usize = 4096, from 1 to 1000000;
        /// How long an upload session is held open without being touched. It can be continued after that, at the price
        /// of reading its bytes once more.
        upload_open_timeout: Duration = "5m", from "1s" to "1d";
        /// How long an upload session lives without being touched.
        upload_idle_timeout: Duration = "1d", from "1m" to "30d";
        /// Memory for small manifests that are pulled often.
        manifest_cache: ByteSize = "32MiB", from "0B" to "64GiB";
        /// The longest page of a list.
        page_size_max: usize = 1000, from 1 to 100000;
        /// Blobs of other regions that clients have on their way here at a time, each with its hashes in memory; an account
        /// gets a quarter of it at most. More wait for a while, then get 429.
        pulled_transfers_max: usize = 512, from 16 to 100000;
        /// Room for blobs of other regions' accounts, and of accounts that mirror a registry outside, that came here because
        /// they were pulled: the least recently used go first. Replicas keep theirs. Default: no limit.
        pulled_blobs_max: Option<ByteSize> = "", from "1MiB" to "1024TiB", example "100GiB";
        /// How often the times of pulls are written.
        pull_times_interval: Duration = "10s", from "1s" to "1h";
    }

    /// Accounts that mirror a registry outside the federation: strategy "from_external_on_first_use".
    external: ExternalSettings {
        /// Hosts of such registries that are spoken to in plain HTTP, with a port, or without one for all of their ports.
        /// All others have to speak HTTPS.
        plain_http_hosts: Vec<String> = [];
        /// Certificates to trust for such registries besides those of the system, in PEM.
        ca_file: Option<PathBuf> = "", example "/etc/keppel/registries.pem";
        /// Where such registries, and what they refer to, must not be, unless plain_http_hosts names them: whoever may
        /// make accounts could otherwise have this machine's own services asked, or its cloud's. Add the networks of
        /// services that tenants must not reach.
        forbidden_networks: Vec<IpNet> = ["0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "::/127", "fe80::/10"];
        /// How long a tag holds before the registry is asked again what it names.
        tag_freshness: Duration = "1m", from "0s" to "30d";
        /// How long something that the registry does not have is not looked for again.
        absence_freshness: Duration = "10s", from "0s" to "1h";
        /// How long a connection may take to be made.
        connect_timeout: Duration = "5s", from "100ms" to "1m";
        /// How long an answer may take to begin, and a whole manifest to arrive.
        answer_timeout: Duration = "20s", from "100ms" to "5m";
        /// How long a blob may stand still. It also has to bring 16 KiB in that time.
        stall_timeout: Duration = "30s", from "100ms" to "10m";
    }

    /// What a node does now and then by itself.
    janitor: JanitorSettings {
        /// How often upload sessions that are past their upload_idle_timeout are looked for, and ended.
        abandoned_uploads_interval: Duration = "1h", from "1s" to "7d";
        /// How often upload sessions that are past their upload_open_timeout are looked for, and closed.
        idle_uploads_interval: Duration = "1m", from "1s" to "1d";
        /// How often stored bytes that nothing refers to are looked for, and removed. Also done at the start.
        storage_sweep_interval: Duration = "6h", from "1m" to "30d";
        /// How often the retention policies (gc_policies) of a repository's account are carried out.
        image_gc_interval: Duration = "1h", from "1s" to "30d";
        /// How often a manifest is read again, to see whether all that it refers to is there.
        manifest_validation_interval: Duration = "1d", from "1s" to "365d";
        /// How often a blob is read again, to see whether its bytes are still right.
        blob_validation_interval: Duration = "7d", from "1s" to "365d";
        /// How often it is looked in a repository for blobs that no manifest there refers to.
        mount_sweep_interval: Duration = "1h", from "1s" to "30d";
        /// How often it is looked in an account for blobs that no repository has.
        blob_sweep_interval: Duration = "1h", from "1s" to "30d";
        /// How often the copies of other regions' accounts are compared with their primaries, and pull times handed there.
        manifest_sync_interval: Duration = "1h", from "1s" to "7d";
        /// How often it is looked for accounts that are being deleted.
        account_deletion_interval: Duration = "1m", from "1s" to "1d";
        /// How long a blob stays that no manifest refers to. A client that uploaded it, or was told that it is there, must
        /// push its manifest within this time.
        grace: Duration = "4h", from "1s" to "30d";
        /// How much a second all of these tasks together may read, so that pulls do not feel it.
        io_budget: ByteSize = "64MiB", from "64KiB" to "64GiB";
        /// How many of these tasks work at a time.
        tasks_max: usize = 2, from 1 to 64;
        /// A declarative file of accounts, as JSON or TOML: `accounts` is a list of them, with name, auth_tenant_id and the
        /// fields of the API. They are made, and kept as they stand there; those that it no longer names are deleted.
        managed_accounts_file: Option<PathBuf> = "", example "/etc/keppel/accounts.toml";
        /// How often the file is read again.
        managed_accounts_interval: Duration = "1m", from "1s" to "1d";
        /// How often primaries in other regions are told what was pulled here. It must be well below the 10 minutes for which
        /// a new image is protected: retention counts the pulls of all regions.
        pulls_told_interval: Duration = "2m", from "1s" to "5m";
        /// Accounts that are never deleted because the file does not name them.
        protected_accounts: Vec<AccountName> = [];
    }

    /// How often one account may be asked for something, as "LIMIT/WINDOW burst BURST" with window s, m or h, such as
    /// "1000/m burst 200". More is answered with 429.
    limits: Limits {
        /// Downloads of blobs. Default: no limit, as for all of these.
        blob_pulls: Option<RateLimit> = "", example "6000/m burst 500";
        /// Uploads of blobs.
        blob_pushes: Option<RateLimit> = "", example "1000/m burst 200";
        /// Downloads of manifests.
        manifest_pulls: Option<RateLimit> = "", example "6000/m burst 500";
        /// Uploads of manifests.
        manifest_pushes: Option<RateLimit> = "", example "600/m burst 100";
        /// Bytes of blobs that this region hands out of accounts that it neither is primary for nor has a replica of: so that
        /// one name for all regions does not make this one the mirror of another.
        anycast_blob_pull_bytes: Option<RateLimit> = "", example "6000000000/m burst 20000000000";
        /// Retrievals of reports on vulnerabilities.
        trivy_report_retrievals: Option<RateLimit> = "", example "60/m burst 20";
    }

    /// The log of what was changed and by whom.
    audit: Audit {
        /// How long events are kept.
        retention: Duration = "90d", from "1h" to "3650d";
        /// A file that events are appended to, one JSON document (in the form of CADF) a line.
        file: Option<PathBuf> = "", example "/var/log/keppel/audit.jsonl";
        /// A URL that gets events by POST, as a JSON list.
        webhook_url: Option<String> = "", example "https://audit.example.org/events";
        /// What is sent to it as Authorization header.
        webhook_authorization: Option<Secret> = "", example "Bearer TOKEN";
        /// How often events are looked for that have not been sent on.
        export_interval: Duration = "1s", from "100ms" to "1h";
    }

    /// This node's part in a federation of regions. A node on its own is a federation of one.
    federation: FederationSettings {
        /// The region this node is in: a name that stays.
        region: Region = "local";
        /// UDP addresses to listen on for other nodes, as IP address and port (`[::]:7000` is every address of this
        /// machine). Default: none, the node stays on its own.
        listen: Vec<UdpAddress> = [];
        /// Where other nodes reach this one, as host and port, where that is not what it listens on. Names are looked
        /// up again and again.
        advertise: Vec<Seed> = [];
        /// Where clients reach this node, as other nodes tell them.
        api_url: Option<String> = "", example "https://eu.registry.example";
        /// Where members may be found whose addresses have all changed, as host and port; a name may stand for many.
        seeds: Vec<Seed> = [];
        /// Whether a first start founds a federation of one. Otherwise the node waits to join.
        found: bool = true;
        /// How often this node looks whether one other node, chosen at random, lives. Twice probe_round_trip or more.
        probe_interval: Duration = "3s", from "100ms" to "1m";
        /// How long a direct answer may take before third nodes are asked to look, too.
        probe_round_trip: Duration = "1s", from "20ms" to "30s";
        /// How long a node that did not answer is suspected before it counts as down.
        suspicion: Duration = "12s", from "200ms" to "10m";
        /// How often news of members are passed on.
        gossip_interval: Duration = "500ms", from "50ms" to "1m";
        /// How often seeds are resolved and tried, while members are missing.
        seed_interval: Duration = "10s", from "100ms" to "1h";
        /// How often the leader of the federation says that it lives.
        heartbeat_interval: Duration = "500ms", from "20ms" to "10s";
        /// The least time without a word from the leader before a node stands for election: several heartbeats.
        election_timeout_min: Duration = "2500ms", from "100ms" to "1m";
        /// The most time; the actual one is random between the two.
        election_timeout_max: Duration = "5s", from "200ms" to "2m";
        /// How long a decision, such as a claim, may take before it is answered with 503.
        command_timeout: Duration = "1500ms", from "200ms" to "1m";
        /// How long another region may answer for this one's accounts without hearing from here, and so how long a push waits
        /// for a region that has fallen silent. The same in all regions.
        lease: Duration = "5s", from "500ms" to "1m";
        /// Events kept per account for regions that were away. A region that was away for longer lists the account anew.
        events_max: usize = 100000, from 1 to 1000000000;
        /// How long events are kept.
        events_age_max: Duration = "7d", from "1m" to "3650d";
        /// How long a voter is out of reach before another member gets its vote.
        voter_absence_max: Duration = "30s", from "1s" to "1d";
        /// A connection to another node over which nothing came for so long is dead.
        idle_timeout: Duration = "10s", from "1s" to "5m";
        /// How often a quiet connection is kept alive: a third of idle_timeout or less.
        keep_alive: Duration = "2500ms", from "100ms" to "1m";
        /// How much one node may have under way to us: bandwidth times round-trip time, and twice that where packets get lost.
        receive_window: ByteSize = "64MiB", from "64KiB" to "1GiB";
        /// The same in the other direction.
        send_window: ByteSize = "64MiB", from "64KiB" to "1GiB";
        /// How much may be fetched from one node per second of what nobody waits for, such as backfill. Default: no limit.
        background_bandwidth_max: Option<ByteSize> = "", from "64KiB" to "100GiB", example "20MiB";
        /// Requests of one node at a time.
        streams_max: usize = 256, from 8 to 10000;
        /// Handshakes at a time from addresses that are known to be real.
        handshakes_max: usize = 256, from 8 to 10000;
        /// Nodes that ask to join at a time.
        joiners_max: usize = 8, from 1 to 1000;
    }

    /// What is written to standard error.
    log: Log {
        /// "text" for people, "json" for programs.
        format: LogFormat = "text";
        /// Which lines: error, warn, info, debug or trace, for all or by part, such as "info,keppel::api=debug".
        filter: String = "info";
    }
}

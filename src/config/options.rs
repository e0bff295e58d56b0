//! From the configuration to each room's options.

use std::path::PathBuf;

use keppel_federation::FederationOptions;
use keppel_federation::claims::{ClaimsOptions, Role};
use keppel_federation::membership::MembershipOptions;
use keppel_federation::transport::quic::QuicOptions;

use super::settings::{Config, ProxyHeadersName};
use crate::api::serve::{Listen, ListenAddress, ServerOptions, TlsOptions};
use crate::api::{ApiOptions, LimitOptions, ProxyHeaders};
use crate::auth::{AuthOptions, KeyOptions, OidcOptions, PasswordOptions, ProviderOptions, TokenOptions};
use crate::external::ExternalOptions;
use crate::janitor::{AuditExportOptions, JanitorOptions, ManagedAccountsOptions, Webhook};
use crate::metadata::MetadataOptions;
use crate::registry::RegistryOptions;
use crate::storage::{FilesystemOptions, MemoryOptions, StorageLimits};

impl Config {
    /// Where the database is.
    pub fn metadata_path(&self) -> PathBuf {
        self.metadata.path.clone().unwrap_or_else(|| self.node.data.join("metadata.db"))
    }

    /// How metadata is kept.
    pub fn metadata_options(&self) -> MetadataOptions {
        MetadataOptions {
            readers: self.metadata.readers,
            reads_waiting_max: self.metadata.reads_waiting_max,
            write_queue_max: self.metadata.write_queue_max,
            group_commit_max: self.metadata.group_commit_max,
            page_cache_bytes: self.metadata.page_cache.0,
        }
    }

    fn storage_limits(&self) -> StorageLimits {
        StorageLimits {
            concurrent_reads_max: self.storage.concurrent_reads_max,
            concurrent_writes_max: self.storage.concurrent_writes_max,
            worker_wait_timeout: self.storage.wait_timeout,
            verified_for: self.storage.verified_for,
            ..StorageLimits::default()
        }
    }

    /// How blobs are kept in a folder.
    pub fn filesystem_options(&self) -> FilesystemOptions {
        let root = self.storage.path.clone().unwrap_or_else(|| self.node.data.join("storage"));
        FilesystemOptions { root, limits: self.storage_limits() }
    }

    /// How blobs are kept in memory.
    pub fn memory_options(&self) -> MemoryOptions {
        MemoryOptions { capacity_bytes: self.storage.memory_capacity.0, limits: self.storage_limits() }
    }

    /// How the registry behaves.
    pub fn registry_options(&self) -> RegistryOptions {
        let settings = &self.registry;
        RegistryOptions {
            default_account: settings.default_account.clone(),
            create_accounts_on_push: settings.create_accounts_on_push,
            manifest_size_max_bytes: settings.manifest_size_max.0,
            blob_size_max_bytes: settings.blob_size_max.0,
            sparse_indexes: settings.sparse_indexes,
            uploads_max: settings.uploads_max,
            upload_open_timeout: settings.upload_open_timeout,
            upload_idle_timeout: settings.upload_idle_timeout,
            manifest_cache_bytes: settings.manifest_cache.0,
            page_size_max: settings.page_size_max,
            pull_times_interval: settings.pull_times_interval,
            pulled_blobs_max_bytes: settings.pulled_blobs_max.map(|size| size.0),
            pulled_transfers_max: settings.pulled_transfers_max,
            background_bytes_per_second: self.federation.background_bandwidth_max.map(|size| size.0),
            lease: self.federation.lease,
            events_kept_max: self.federation.events_max as u64,
            events_kept_for: self.federation.events_age_max,
            external_tag_freshness: self.external.tag_freshness,
            external_absence_freshness: self.external.absence_freshness,
        }
    }

    /// How registries outside the federation are asked.
    pub fn external_options(&self) -> ExternalOptions {
        let settings = &self.external;
        ExternalOptions {
            plain_http_hosts: settings.plain_http_hosts.clone(),
            forbidden_networks: settings.forbidden_networks.clone(),
            connect_timeout: settings.connect_timeout,
            answer_timeout: settings.answer_timeout,
            stall_timeout: settings.stall_timeout,
            manifest_size_max_bytes: self.registry.manifest_size_max.0,
        }
    }

    /// How tokens are made and checked.
    pub fn token_options(&self) -> TokenOptions {
        TokenOptions {
            service: self.auth.service.clone(),
            access_seconds: seconds(self.auth.token_lifetime),
            refresh_seconds: seconds(self.auth.refresh_token_lifetime),
            ..TokenOptions::default()
        }
    }

    /// How signing keys come and go.
    pub fn key_options(&self) -> KeyOptions {
        let defaults = KeyOptions::default();
        // A refresh token of a key's last moment, and clocks that differ by a day.
        let longest = self.auth.refresh_token_lifetime.max(self.auth.token_lifetime);
        let tail_seconds = seconds(longest) + 24 * 3600;
        KeyOptions { rotation_seconds: seconds(self.auth.key_rotation), tail_seconds, ..defaults }
    }

    /// How passwords are checked.
    pub fn password_options(&self) -> PasswordOptions {
        let defaults = PasswordOptions::default();
        PasswordOptions {
            parallel_max: self.auth.password_checks_max.unwrap_or(defaults.parallel_max),
            waiting_max: self.auth.password_checks_waiting_max,
            ..defaults
        }
    }

    /// Whom the oidc driver lets in. `authorities_pem` is what the file of certificates holds.
    pub fn oidc_options(&self, authorities_pem: Option<Vec<u8>>) -> OidcOptions {
        let auth = &self.auth;
        let provider = auth.oidc_issuer.clone().map(|issuer| ProviderOptions {
            issuer,
            client_id: auth.oidc_client_id.clone(),
            scopes: auth.oidc_scopes.clone(),
            username_claim: auth.oidc_username_claim.clone(),
            groups_claim: auth.oidc_groups_claim.clone(),
            roles: auth.oidc_roles.clone(),
            roleless_users: auth.oidc_roleless_users,
            session_seconds: seconds(auth.oidc_session),
        });
        let workloads = auth.workloads.clone();
        OidcOptions { provider, workloads, skew_seconds: seconds(auth.oidc_clock_skew), authorities_pem }
    }

    /// What is remembered about callers.
    pub fn auth_options(&self) -> AuthOptions {
        AuthOptions { accepted_seconds: seconds(self.auth.password_cache), ..AuthOptions::default() }
    }

    /// This node's part in the federation, as one that keeps content or as a witness, which never founds one.
    pub fn federation_options(&self, role: Role) -> FederationOptions {
        let settings = &self.federation;
        let u32_of = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let defaults = FederationOptions::new(&self.node.data, settings.region.clone());
        FederationOptions {
            role,
            found: settings.found && role == Role::Full,
            listen: settings.listen.iter().map(|address| address.0).collect(),
            advertise: settings.advertise.clone(),
            api_url: settings.api_url.clone().unwrap_or_default(),
            seeds: settings.seeds.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            quic: QuicOptions {
                idle_timeout: settings.idle_timeout,
                keep_alive_interval: settings.keep_alive,
                receive_window_bytes: u32_of(settings.receive_window.0),
                send_window_bytes: settings.send_window.0,
                streams_max: u32_of(settings.streams_max as u64),
                handshakes_validated_max: settings.handshakes_max,
                joiners_max: settings.joiners_max,
                ..QuicOptions::default()
            },
            membership: MembershipOptions {
                probe_interval: settings.probe_interval,
                probe_round_trip: settings.probe_round_trip,
                suspicion: settings.suspicion,
                gossip_interval: settings.gossip_interval,
                seed_interval: settings.seed_interval,
                ..MembershipOptions::default()
            },
            claims: self.claims_options(),
            ..defaults
        }
    }

    fn claims_options(&self) -> ClaimsOptions {
        let settings = &self.federation;
        ClaimsOptions {
            heartbeat_interval: settings.heartbeat_interval,
            election_timeout_min: settings.election_timeout_min,
            election_timeout_max: settings.election_timeout_max,
            command_timeout: settings.command_timeout,
            voter_absence_max: settings.voter_absence_max,
            ..ClaimsOptions::default()
        }
    }

    /// The rhythms of the janitor.
    pub fn janitor_options(&self) -> JanitorOptions {
        JanitorOptions {
            abandoned_uploads_interval: self.janitor.abandoned_uploads_interval,
            idle_uploads_interval: self.janitor.idle_uploads_interval,
            storage_sweep_interval: self.janitor.storage_sweep_interval,
            image_gc_interval: self.janitor.image_gc_interval,
            manifest_validation_interval: self.janitor.manifest_validation_interval,
            blob_validation_interval: self.janitor.blob_validation_interval,
            mount_sweep_interval: self.janitor.mount_sweep_interval,
            blob_sweep_interval: self.janitor.blob_sweep_interval,
            manifest_sync_interval: self.janitor.manifest_sync_interval,
            account_deletion_interval: self.janitor.account_deletion_interval,
            managed_accounts_interval: self.janitor.managed_accounts_interval,
            pulls_told_interval: self.janitor.pulls_told_interval,
            managed_accounts: ManagedAccountsOptions {
                file: self.janitor.managed_accounts_file.clone(),
                protected: self.janitor.protected_accounts.clone(),
            },
            grace: self.janitor.grace,
            io_budget_bytes_per_second: self.janitor.io_budget.0,
            tasks_max: self.janitor.tasks_max,
            audit_retention: self.audit.retention,
            audit_export_interval: self.audit.export_interval,
            audit_export: AuditExportOptions {
                observer: self.auth.service.clone(),
                file: self.audit.file.clone(),
                webhook: self.audit.webhook_url.clone().map(|url| {
                    let authorization = self.audit.webhook_authorization.clone();
                    Webhook { url, authorization }
                }),
            },
        }
    }

    /// How the HTTP side behaves.
    pub fn api_options(&self) -> ApiOptions {
        let http = &self.http;
        let tls = http.tls_certificate.clone().zip(http.tls_key.clone()).map(|(certificate_file, key_file)| {
            TlsOptions { certificate_file, key_file, reload_interval: http.tls_reload_interval }
        });
        let listen = http.listen.iter().map(|address| {
            let tls = tls.clone().filter(|_| matches!(address, ListenAddress::Tcp(_)));
            Listen { address: address.clone(), tls }
        });
        let server = ServerOptions {
            listen: listen.collect(),
            connections_max: http.connections_max,
            header_size_max_bytes: usize::try_from(http.header_size_max.0).unwrap_or(usize::MAX),
            headers_max: http.headers_max,
            handshake_timeout: http.handshake_timeout,
            header_read_timeout: http.header_timeout,
            idle_timeout: http.idle_timeout,
            body_idle_timeout: http.body_idle_timeout,
            http2_keep_alive: http.http2_keep_alive,
            http2_streams_max: u32::try_from(http.http2_streams_max).unwrap_or(u32::MAX),
            shutdown_grace: self.node.shutdown_grace,
        };
        ApiOptions {
            server,
            upload_chunk_min_bytes: http.upload_chunk_min.0,
            tags_per_push_max: http.tags_per_push_max,
            token_url: self.auth.token_url.clone(),
            public_hosts: http.public_hosts.iter().map(|host| host.0.clone()).collect(),
            trusted_proxies: http.trusted_proxies.clone(),
            proxy_headers: match http.proxy_headers {
                ProxyHeadersName::XForwarded => ProxyHeaders::XForwarded,
                ProxyHeadersName::Forwarded => ProxyHeaders::Forwarded,
            },
            limits: LimitOptions {
                blob_pulls: self.limits.blob_pulls,
                blob_pushes: self.limits.blob_pushes,
                manifest_pulls: self.limits.manifest_pulls,
                manifest_pushes: self.limits.manifest_pushes,
                anycast_blob_pull_bytes: self.limits.anycast_blob_pull_bytes,
                trivy_report_retrievals: self.limits.trivy_report_retrievals,
            },
        }
    }
}

fn seconds(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Loaded, Sources, load};

    fn defaults() -> Config {
        let Loaded { config, .. } = load(&Sources::default()).expect("the defaults are valid");
        config
    }

    #[test]
    fn the_defaults_here_are_the_defaults_of_the_rooms() {
        let config = defaults();
        let text = |value: &dyn std::fmt::Debug| format!("{value:?}");
        assert_eq!(text(&config.metadata_options()), text(&MetadataOptions::default()));
        assert_eq!(config.storage_limits(), StorageLimits::default());
        let registry = RegistryOptions { create_accounts_on_push: true, ..RegistryOptions::default() };
        assert_eq!(text(&config.registry_options()), text(&registry));
        assert_eq!(config.external_options(), ExternalOptions::default());
        let observer = config.auth.service.clone();
        let audit_export = AuditExportOptions { observer, ..AuditExportOptions::default() };
        let janitor = JanitorOptions { audit_export, ..JanitorOptions::default() };
        assert_eq!(text(&config.janitor_options()), text(&janitor));
        assert_eq!(text(&config.token_options()), text(&TokenOptions::default()));
        assert_eq!(text(&config.key_options()), text(&KeyOptions::default()));
        assert_eq!(text(&config.password_options()), text(&PasswordOptions::default()));
        assert_eq!(text(&config.auth_options()), text(&AuthOptions::default()));
        let federation = FederationOptions::new(&config.node.data, config.federation.region.clone());
        assert_eq!(text(&config.federation_options(Role::Full)), text(&federation));
        let mut api = ApiOptions::default();
        api.server.listen = vec![Listen::plain(([127, 0, 0, 1], 5000).into())];
        assert_eq!(config.api_options(), api);
    }

    #[test]
    fn files_are_in_the_data_folder_unless_they_are_put_elsewhere() {
        let mut config = defaults();
        assert_eq!(config.metadata_path(), PathBuf::from("/var/lib/keppel/metadata.db"));
        assert_eq!(config.filesystem_options().root, PathBuf::from("/var/lib/keppel/storage"));
        config.storage.path = Some("/srv/blobs".into());
        assert_eq!(config.filesystem_options().root, PathBuf::from("/srv/blobs"));
    }

    #[test]
    fn tls_is_for_tcp_and_not_for_a_unix_socket() {
        let mut config = defaults();
        config.http.tls_certificate = Some("/c.pem".into());
        config.http.tls_key = Some("/k.pem".into());
        config.http.listen.push(ListenAddress::Unix("/run/keppel.sock".into()));
        let tls: Vec<bool> = config.api_options().server.listen.iter().map(|listen| listen.tls.is_some()).collect();
        assert_eq!(tls, [true, false]);
    }
}

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::api::serve::ListenAddress;

/// Loads a text as the file `keppel.toml` in `/etc/keppel`.
fn load_text(text: &str) -> Result<Loaded, Problems> {
    load_with(text, &[])
}

fn ports(loaded: &Loaded) -> Vec<u16> {
    let port = |address: &ListenAddress| match address {
        ListenAddress::Tcp(address) => address.port(),
        ListenAddress::Unix(_) => 0,
    };
    loaded.config.http.listen.iter().map(port).collect()
}

fn load_with(text: &str, variables: &[(&str, &str)]) -> Result<Loaded, Problems> {
    let mut assembler = Assembler::default();
    let mut warnings = Vec::new();
    let at = |line| Origin::File { path: "keppel.toml".into(), line };
    source::read_text(text, Path::new("/etc/keppel"), &at, SECTIONS, &mut assembler);
    let variables: Vec<_> = variables.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    source::read_environment(&variables, Path::new("/run"), SECTIONS, &mut assembler, &mut warnings);
    finish(assembler, warnings)
}

fn refused(text: &str) -> String {
    load_text(text).expect_err("the text must be refused").to_string()
}

#[test]
fn every_mistake_of_a_file_is_named_with_its_line_and_key_and_what_was_meant() {
    let text = "\
[http]
lisetn = \"127.0.0.1:80\"
listen = \"example.org\"
manifest_size_max = \"1MiB\"

[regsitry]
default_account = \"library\"

[registry]
manifest_size_max = \"1GiB\"
create_accounts_on_push = \"yes\"
default_account = \"-No-\"

[node]
threads = 0
shutdown_grace = 30
data = 5
";
    let expected = "\
keppel.toml:2: http.lisetn: unknown key; did you mean \"listen\"?
keppel.toml:3: http.listen: \"example.org\" is not an address to listen on: write an IP address and a port, such as \"127.0.0.1:5000\", or \"unix:\" and a path (or a list of such)
keppel.toml:4: http.manifest_size_max: unknown key; \"manifest_size_max\" belongs in [registry]
keppel.toml:6: regsitry: unknown section; did you mean [registry]?
keppel.toml:10: registry.manifest_size_max: \"1GiB\" is out of bounds: it must be from \"64KiB\" to \"64MiB\"
keppel.toml:11: registry.create_accounts_on_push: \"yes\" is not true or false
keppel.toml:12: registry.default_account: \"-No-\" is not an account name: write 1 to 48 characters out of a-z, 0-9 and '-', not starting with '-'
keppel.toml:15: node.threads: 0 is out of bounds: it must be from 1 to 1024
keppel.toml:16: node.shutdown_grace: 30 is not a duration: write a whole number and ms, s, m, h or d, such as \"30s\"
keppel.toml:17: node.data: 5 is not a path: write a text that is not empty";
    assert_eq!(refused(text), expected);
}

#[test]
fn keys_outside_of_their_section_are_told_where_they_belong() {
    assert_eq!(refused("listen = \"[::]:80\""), "keppel.toml:1: listen: this key belongs below [http]");
    assert_eq!(refused("\nhttp = 80"), "keppel.toml:2: http: this is a section: write [http] and its keys below");
    let sections: Vec<_> = SECTIONS.iter().map(|section| format!("[{}]", section.name)).collect();
    assert_eq!(
        refused("[blueberries]"),
        format!("keppel.toml:1: blueberries: unknown section; there are {}", sections.join(", "))
    );
}

#[test]
fn syntax_errors_are_named_with_their_line() {
    let text = "[http]\nlisten = \"127.0.0.1:80\nx\n";
    let message = refused(text);
    assert!(message.starts_with("keppel.toml:2: this is not TOML: "), "{message}");
    let twice = refused("[http]\nlisten = \"[::]:80\"\nlisten = \"[::]:81\"\n");
    assert!(twice.starts_with("keppel.toml:3: this is not TOML: duplicate key"), "{twice}");
}

#[test]
fn a_node_without_an_address_is_refused() {
    let expected = "keppel.toml:2: http.listen: there must be at least one address to listen on";
    assert_eq!(refused("[http]\nlisten = []\n"), expected);
}

#[test]
fn the_filter_of_the_log_is_checked() {
    let message = refused("[log]\nfilter = \"info,keppel=lots\"\n");
    assert!(message.starts_with("keppel.toml:2: log.filter: \"info,keppel=lots\" is not a filter: "), "{message}");
}

#[test]
fn a_missing_file_of_tls_is_refused_at_its_line_and_a_certificate_needs_a_key() {
    let message = refused("[http]\ntls_certificate = \"no-such.pem\"\n");
    let expected = "\
keppel.toml:2: http.tls_certificate: /etc/keppel/no-such.pem cannot be read: No such file or directory (os error 2)
keppel.toml:2: http.tls_certificate: a certificate needs its key: set http.tls_key too";
    assert_eq!(message, expected);
}

#[test]
fn there_must_be_a_thread_for_each_permit() {
    let expected = "keppel.toml:2: node.blocking_threads_max: 100 is too few: it must be more than \
                    storage.concurrent_reads_max, storage.concurrent_writes_max and metadata.readers together, which is 132";
    assert_eq!(refused("[node]\nblocking_threads_max = 100\n"), expected);
    assert!(load_text("[node]\nblocking_threads_max = 100\n[storage]\nconcurrent_reads_max = 31\n").is_ok());
}

#[test]
fn variables_override_the_file_and_flags_override_variables() {
    let loaded = load_with("[http]\nlisten = \"[::]:80\"\n", &[("KEPPEL_HTTP_LISTEN", "[::]:81")]).expect("valid");
    assert_eq!(ports(&loaded), [81]);
    let sources = Sources {
        environment: vec![("KEPPEL_HTTP_LISTEN".into(), "[::]:81".into())],
        flags: vec![Flag { name: "--listen".into(), key: "http.listen".into(), value: ":82".into() }],
        ..Sources::default()
    };
    let loaded = load(&sources).expect("valid");
    assert_eq!(ports(&loaded), [82]);
    let entry = loaded.entries.iter().find(|entry| entry.key.name == "listen").expect("every key has an entry");
    assert_eq!(entry.origin.to_string(), "--listen");
}

#[test]
fn a_bad_value_is_refused_even_where_a_stronger_source_overrides_it() {
    let problems = load_with("[http]\nlisten = \"x\"\n", &[("KEPPEL_HTTP_LISTEN", ":81")]).expect_err("refused");
    assert!(problems.to_string().starts_with("keppel.toml:2: http.listen: "), "{problems}");
}

#[test]
fn a_mistyped_variable_is_refused_in_a_section_and_warned_about_elsewhere() {
    let problems = load_with("", &[("KEPPEL_HTTP_LISTNE", ":81"), ("KEPPEL_NODE_THREADS", "many")]);
    let expected = "\
KEPPEL_HTTP_LISTNE: unknown variable; did you mean KEPPEL_HTTP_LISTEN?
KEPPEL_NODE_THREADS: node.threads: \"many\" is not a whole number";
    assert_eq!(problems.expect_err("refused").to_string(), expected);
    let loaded = load_with("", &[("KEPPEL_HTPP_LISTEN", ":81"), ("OTHER", "x")]).expect("only a warning");
    assert_eq!(loaded.warnings.len(), 1);
    assert_eq!(
        loaded.warnings[0].to_string(),
        "KEPPEL_HTPP_LISTEN: unknown variable; did you mean KEPPEL_HTTP_LISTEN?"
    );
}

#[test]
fn variables_of_the_client_and_of_kubernetes_are_left_alone() {
    let variables = [
        ("KEPPEL_SERVER", "https://registry.example.org"),
        ("KEPPEL_TOKEN", "x"),
        ("KEPPEL_SERVICE_HOST", "10.0.0.1"),
        ("KEPPEL_SERVICE_PORT_HTTP", "5000"),
        ("KEPPEL_PORT", "tcp://10.0.0.1:5000"),
        ("KEPPEL_PORT_5000_TCP_ADDR", "10.0.0.1"),
        ("KEPPEL_HTTP_SERVICE_HOST", "10.0.0.1"),
    ];
    assert_eq!(load_with("", &variables).expect("valid").warnings, []);
    assert!(load_with("", &[("KEPPEL_HTTP_PORT", "5000")]).is_err(), "a mistake, not a service link");
}

#[test]
fn relative_paths_start_at_the_folder_of_their_source() {
    let loaded = load_text("[node]\ndata = \"data\"\n").expect("valid");
    assert_eq!(loaded.config.node.data, Path::new("/etc/keppel/data"));
    let loaded = load_with("", &[("KEPPEL_NODE_DATA", "data")]).expect("valid");
    assert_eq!(loaded.config.node.data, Path::new("/run/data"));
}

#[test]
fn a_missing_file_and_one_that_is_not_text_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("keppel.toml");
    let load_file = || load(&Sources { file: Some(path.clone()), ..Sources::default() }).map(|_| ());
    let missing = load_file().expect_err("there is no file").to_string();
    assert_eq!(
        missing,
        format!("{}:1: this file cannot be read: No such file or directory (os error 2)", path.display())
    );
    std::fs::write(&path, b"[http]\nlisten = \"\xff\"\n").expect("written");
    let binary = load_file().expect_err("not text").to_string();
    assert_eq!(binary, format!("{}:2: this line is not UTF-8 text", path.display()));
}

#[test]
fn every_default_bound_and_example_can_be_read_and_stands_within_its_bounds() {
    let defaults = load_text("").expect("the defaults are valid");
    let count = SECTIONS.iter().map(|section| section.keys.len()).sum::<usize>();
    assert_eq!(defaults.entries.len(), count);
    for key in SECTIONS.iter().flat_map(|section| section.keys) {
        assert!(!key.doc.is_empty(), "{} has no words", key.path());
        assert!(key.default != "\"\"" || key.example.is_some(), "{} has neither default nor example", key.path());
        let bounds = key.bounds.map(|(low, high)| [low, high]);
        for text in bounds.into_iter().flatten().chain([key.default]).chain(key.example) {
            let problems = load_text(&format!("[{}]\n{} = {text}\n", key.section, key.name)).err();
            let wrong = problems.map(|problems| problems.to_string()).unwrap_or_default();
            // Some go with others only: a certificate with its file, few threads with few permits, times of one protocol.
            let together = ["/etc/keppel/tls/", "/etc/keppel/registries.pem", "is too few", "goes with federation."]
                .iter()
                .any(|known| wrong.contains(known));
            assert!(wrong.is_empty() || together, "{} = {text}: {wrong}", key.path());
        }
    }
}

#[test]
fn the_example_shows_every_key_at_its_real_default() {
    let text = example();
    assert_eq!(load_text(&text).expect("the example is valid").config, load_text("").expect("valid").config);
    // Taking the # from every key whose default is not none changes nothing.
    let mut uncommented = String::new();
    let mut keys = SECTIONS.iter().flat_map(|section| section.keys).peekable();
    for line in text.lines() {
        let Some(key) = keys.peek() else { break };
        match line.strip_prefix(&format!("#{} = ", key.name)) {
            Some(_) if key.default == "\"\"" => drop(keys.next()),
            Some(value) => {
                uncommented.push_str(&format!("{} = {value}\n", key.name));
                keys.next();
            }
            None => uncommented.push_str(&format!("{line}\n")),
        }
    }
    assert!(keys.next().is_none(), "the example lacks a key");
    let loaded = load_text(&uncommented).expect("valid");
    assert_eq!(loaded.config, load_text("").expect("valid").config);
    assert!(loaded.entries.iter().any(|entry| entry.origin != Origin::Default), "nothing was uncommented");
}

#[test]
fn the_example_file_in_the_repository_is_the_one_the_program_writes() {
    assert_eq!(
        include_str!("../../config/single-node.toml"),
        example(),
        "run: keppel config example > config/single-node.toml"
    );
}

#[test]
fn what_is_shown_is_a_configuration_that_means_the_same() {
    let loaded =
        load_text("[registry]\ndefault_account = \"team\"\n[node]\nshutdown_grace = \"90s\"\n").expect("valid");
    let shown = show(&loaded.entries);
    assert!(shown.contains("default_account = \"team\""), "{shown}");
    assert!(shown.contains("# keppel.toml:2\n"), "{shown}");
    assert_eq!(load_text(&shown).expect("valid").config, loaded.config);
}

#[test]
fn no_two_keys_share_a_variable() {
    let keys = SECTIONS.iter().flat_map(|section| section.keys);
    let mut variables: Vec<_> = keys.map(Key::variable).collect();
    variables.sort();
    let count = variables.len();
    variables.dedup();
    assert_eq!(variables.len(), count);
    assert!(!variables.iter().any(|name| ["KEPPEL_SERVER", "KEPPEL_TOKEN", "KEPPEL_CONFIG"].contains(&name.as_str())));
}

/// Lines that look like a configuration, right and wrong.
fn line() -> impl Strategy<Value = String> {
    let keys: Vec<String> = SECTIONS.iter().flat_map(|section| section.keys).map(|key| key.name.to_owned()).collect();
    let sections: Vec<String> = SECTIONS.iter().map(|section| section.name.to_owned()).collect();
    let value = prop_oneof![
        Just("\"\"".to_owned()),
        Just("true".to_owned()),
        Just("[[1], {}]".to_owned()),
        Just("1979-05-27".to_owned()),
        Just("0xffffffffffffffffff".to_owned()),
        any::<i64>().prop_map(|number| number.to_string()),
        "[0-9]{1,25}(ms|s|d|MiB|TiB)?".prop_map(|text| format!("\"{text}\"")),
        "\\PC{0,12}",
    ];
    prop_oneof![
        prop::sample::select(sections).prop_map(|name| format!("[{name}]")),
        (prop::sample::select(keys), value).prop_map(|(key, value)| format!("{key} = {value}")),
        "\\PC{0,20}",
        "[a-z.\\[\\]{}\"'=# ]{0,20}",
    ]
}

proptest! {
    #[test]
    fn no_text_panics_and_every_problem_names_a_line_that_is_there(lines in prop::collection::vec(line(), 0..12)) {
        let text = lines.join("\n");
        if let Err(Problems(problems)) = load_text(&text) {
            prop_assert!(!problems.is_empty());
            let count = text.split('\n').count();
            for problem in problems {
                match &problem.origin {
                    Origin::File { line, .. } => prop_assert!((1..=count).contains(line), "{problem}"),
                    other => prop_assert!(false, "{other:?}: {problem}"),
                }
            }
        }
    }

    #[test]
    fn no_bytes_in_a_file_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let text = String::from_utf8_lossy(&bytes);
        let _ = load_text(&text);
    }

    #[test]
    fn no_variable_panics(name in "KEPPEL_[A-Z_]{0,20}", value in "\\PC{0,20}") {
        let _ = load_with("", &[(&name, &value), ("KEPPEL_HTTP_LISTEN", &value), ("KEPPEL_NODE_DATA", &value)]);
    }
}

#[test]
fn times_of_the_federation_are_checked_against_each_other() {
    let wrong =
        load_text("[federation]\nprobe_interval = \"1s\"\nelection_timeout_max = \"1s\"\n").expect_err("refused");
    let wrong = wrong.to_string();
    assert!(wrong.contains("federation.probe_interval: it goes with federation.probe_round_trip"), "{wrong}");
    assert!(wrong.contains("federation.election_timeout_max: it goes with federation.election_timeout_min"), "{wrong}");
    load_text("[federation]\nprobe_interval = \"1s\"\nprobe_round_trip = \"500ms\"\n").expect("they fit");
}

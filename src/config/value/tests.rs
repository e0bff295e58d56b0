use super::*;

fn read<T: Value>(text: &str) -> Option<T> {
    T::read(&Raw::Untyped(text.to_owned()), Path::new("/etc/keppel"))
}

#[test]
fn sizes_and_durations_are_read_with_their_units() {
    assert_eq!(read("4MiB"), Some(ByteSize(4 << 20)));
    assert_eq!(read("4 mib"), Some(ByteSize(4 << 20)));
    assert_eq!(read("17"), Some(ByteSize(17)));
    assert_eq!(read("500ms"), Some(Duration::from_millis(500)));
    assert_eq!(read("2h"), Some(Duration::from_secs(7200)));
}

#[test]
fn numbers_without_sense_are_refused() {
    for text in ["", "MiB", "-1MiB", "1.5GiB", "99999999999TiB", "4 parsecs"] {
        assert_eq!(read::<ByteSize>(text), None, "{text}");
    }
    for text in ["", "30", "s", "-1s", "1e3s", "99999999999999999d", "1S"] {
        assert_eq!(read::<Duration>(text), None, "{text}");
    }
    assert_eq!(read::<usize>("-1"), None);
    assert_eq!(read::<bool>("yes"), None);
}

#[test]
fn what_is_written_is_read_back() {
    for bytes in [0, 1, 1000, 1024, 1536, 4 << 20, 5_000_000, u64::MAX] {
        let size = ByteSize(bytes);
        assert_eq!(read(size.to_toml().trim_matches('"')), Some(size));
    }
    for milliseconds in [0, 1, 1000, 1500, 60_000, 90_000, 86_400_000] {
        let duration = Duration::from_millis(milliseconds);
        assert_eq!(read(duration.to_toml().trim_matches('"')), Some(duration));
    }
}

#[test]
fn relative_paths_start_at_the_folder_of_the_file() {
    assert_eq!(read("tls/key.pem"), Some(PathBuf::from("/etc/keppel/tls/key.pem")));
    assert_eq!(read("/srv/key.pem"), Some(PathBuf::from("/srv/key.pem")));
    assert_eq!(read::<PathBuf>(""), None);
}

#[test]
fn addresses_need_a_port_and_know_localhost_and_sockets() {
    let tcp = |text: &str| Some(ListenAddress::Tcp(text.parse().expect("an address")));
    assert_eq!(read("127.0.0.1:5000"), tcp("127.0.0.1:5000"));
    assert_eq!(read("localhost:0"), tcp("127.0.0.1:0"));
    assert_eq!(read(":80"), tcp("[::]:80"));
    assert_eq!(read("unix:run/keppel.sock"), Some(ListenAddress::Unix("/etc/keppel/run/keppel.sock".into())));
    for text in ["", "5000", "127.0.0.1", "example.org:80", "127.0.0.1:70000", "unix:"] {
        assert_eq!(read::<ListenAddress>(text), None, "{text}");
    }
}

#[test]
fn nodes_are_named_by_host_and_port_and_listened_on_by_address() {
    let seed = read::<Seed>("eu.example:7000").expect("a seed");
    assert_eq!(seed.to_toml(), "\"eu.example:7000\"");
    assert_eq!(read::<Seed>("eu.example"), None);
    assert_eq!(read::<UdpAddress>("[::]:7000").map(|address| address.0.port()), Some(7000));
    assert_eq!(read::<UdpAddress>("localhost:7000"), None);
    assert_eq!(read::<Region>("EU"), None);
}

#[test]
fn an_empty_text_takes_an_optional_value_back() {
    assert_eq!(read::<Option<AccountName>>(""), Some(None));
    assert_eq!(read::<Option<AccountName>>("-x"), None);
}

#[test]
fn lists_are_written_with_commas_in_the_environment() {
    let names = read::<Vec<AccountName>>("library, team").expect("two names");
    assert_eq!(names.to_toml(), "[\"library\", \"team\"]");
    assert_eq!(read::<Vec<AccountName>>("[\"library\", \"team\"]"), Some(names));
    assert_eq!(read::<Vec<ListenAddress>>("[::]:80,[::1]:81").map(|addresses| addresses.len()), Some(2));
    assert_eq!(read::<Vec<AccountName>>("library,No"), None);
    let one = Vec::<AccountName>::read(&Raw::String("library".to_owned()), Path::new(""));
    assert_eq!(one.map(|names| names.to_toml()), Some("[\"library\"]".to_owned()));
}

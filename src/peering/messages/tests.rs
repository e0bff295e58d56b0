use super::*;
use proptest::prelude::*;

fn question() -> Question {
    Question::PutManifest {
        repository: RepositoryName::parse("acme/app").unwrap(),
        target: Target::Tag(Tag::parse("v1").unwrap()),
        media_type: None,
        bytes: b"{}".to_vec(),
    }
}

#[test]
fn a_message_arrives_as_it_was_sent() {
    assert_eq!(decode::<Question>(&encode(&question())), Ok(question()));
    let answer = Answer::Refused(Refusal::BlobUnknown { digest: Digest::from_sha256([7; 32]) });
    assert_eq!(decode::<Answer>(&encode(&answer)), Ok(answer));
}

#[test]
fn a_beginning_that_an_older_node_does_not_prove_is_left_out() {
    let opened = |beginning: usize, size_bytes: u64| {
        let beginning = vec![7; beginning];
        let answer = Answer::OpenedBlob { size_bytes, blake3: [1; 32], outboard: vec![], beginning, holders: vec![] };
        answer.into_blob().unwrap().beginning.len()
    };
    assert_eq!(opened(8192, 1 << 20), 0);
    assert_eq!(opened(8192, 8192), 8192);
    assert_eq!(opened(256 << 10, 1 << 20), 256 << 10);
    assert!(Answer::Deleted.into_blob().is_none());
}

#[test]
fn a_message_of_another_version_is_told_from_garbage() {
    assert_eq!(decode::<Question>(&[9, 0]), Err(MessageError::Version(9)));
    assert_eq!(decode::<Question>(&[VERSION, 250]), Err(MessageError::Unreadable));
    assert_eq!(decode::<Question>(&[]), Err(MessageError::Unreadable));
}

proptest! {
    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode::<Question>(&bytes);
        let _ = decode::<Answer>(&bytes);
    }

    #[test]
    fn no_mutation_makes_a_decoder_panic(at in any::<prop::sample::Index>(), with in any::<u8>()) {
        let mut bytes = encode(&question()).to_vec();
        let index = at.index(bytes.len());
        bytes[index] = with;
        let _ = decode::<Question>(&bytes);
    }
}

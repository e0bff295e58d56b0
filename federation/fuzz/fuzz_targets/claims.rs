//! Random bytes to every decoder of the claims: messages of consensus, commands, log entries, state: none may panic.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| keppel_federation::claims::exercise_decoders(input));

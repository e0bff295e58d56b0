//! Random bytes to every decoder of the wire: none may panic, none may hold more than its limit allows.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| keppel_federation::wire::exercise_decoders(input));

//! Random bytes to the decoders of admission: invitations, what a joining node asks and is told: none may panic.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| keppel_federation::admission::exercise_decoders(input));

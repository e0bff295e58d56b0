//! Random bytes to the decoders of gossip: cards, and the packets of the SWIM library: none may panic.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| keppel_federation::membership::exercise_decoders(input));

#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| trunkline::fuzzing::redis_answers(data));

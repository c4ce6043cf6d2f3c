//! See [`hive_fuzz::headers`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hive_fuzz::headers(data));

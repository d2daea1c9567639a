//! Plays every target, without the fuzzer, over the files of its corpus and variations of them.

use std::path::{Path, PathBuf};
use std::{env, fs, thread};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use super::{TARGETS, Target};

/// Variations of each target's corpus; all together take a few seconds in a debug build.
const VARIATIONS: usize = 3000;

/// The longest of them, in bytes, as for the fuzzer: twice what a header may have.
const LONGEST: usize = 2048;

/// The first seed; `TRUNKLINE_FUZZ_SEED` gives another.
const SEED: u64 = 1;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(name)
}

/// The files of a target's corpus, in an order that is always the same.
fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder("corpus").join(target))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
        .into_iter()
        .map(|file| (file.clone(), fs::read(file).unwrap()))
        .collect()
}

/// Says what was played when that panics.
struct Telling<'a> {
    what: String,
    input: &'a [u8],
}

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{} found something in {}", self.what, self.input.escape_ascii());
        }
    }
}

fn play(target: Target, what: String, input: &[u8]) {
    let _telling = Telling { what, input };
    target(input);
}

/// One of the inputs with a few things done to it, as the fuzzer does.
fn vary(random: &mut StdRng, inputs: &[Vec<u8>]) -> Vec<u8> {
    let pick = |random: &mut StdRng| inputs.choose(random).cloned().unwrap_or_default();
    let mut input = pick(random);
    for _ in 0..random.random_range(1..=6) {
        let at = random.random_range(0..=input.len());
        let end = random.random_range(at..=input.len().min(at + 32));
        match random.random_range(0..7) {
            0 => input.insert(at, random.random()),
            1 => drop(input.drain(at..end)),
            2 => input.extend_from_within(at..end),
            3 => input.truncate(at),
            4 => {
                let other = pick(random);
                let from = random.random_range(0..=other.len());
                let part = other[from..].iter().take(random.random_range(0..=64)).copied();
                input.splice(at..end, part);
            }
            kind => {
                if let Some(byte) = input.get_mut(at) {
                    match kind {
                        5 => *byte ^= 1 << random.random_range(0..8),
                        _ => *byte = *[0, 1, 0x3f, 0x40, 0x7f, 0x80, 0xc0, 0xff].choose(random).unwrap(),
                    }
                }
            }
        }
    }
    input.truncate(LONGEST);
    input
}

fn play_corpus_and_variations(name: &str) {
    let (_, target) = *TARGETS.iter().find(|(known, _)| *known == name).unwrap();
    let seed = env::var("TRUNKLINE_FUZZ_SEED").map_or(SEED, |seed| seed.parse().unwrap());
    println!("TRUNKLINE_FUZZ_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut inputs = Vec::new();
    for (file, input) in corpus(name) {
        play(target, format!("{name}, from {}", file.display()), &input);
        inputs.push(input);
    }
    for _ in 0..VARIATIONS {
        let input = vary(&mut random, &inputs);
        play(target, format!("{name}, TRUNKLINE_FUZZ_SEED={seed}"), &input);
    }
}

macro_rules! targets_find_nothing {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            play_corpus_and_variations(stringify!($name));
        }
    )*

        /// The lists of targets are the same: here, in the table, and of files for the fuzzer.
        #[test]
        fn every_target_is_played_here_and_by_the_fuzzer() {
            let mut here = vec![$(stringify!($name)),*];
            here.sort_unstable();
            let mut table = TARGETS.map(|(name, _)| name);
            table.sort_unstable();
            assert_eq!(here, table);
            let manifest = fs::read_to_string(folder("Cargo.toml")).unwrap();
            let mut listed: Vec<_> = manifest.lines().filter_map(|line| line.strip_prefix("name = ")).skip(1).collect();
            listed.sort_unstable();
            assert_eq!(listed, here.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>());
            for name in here {
                let file = fs::read_to_string(folder("fuzz_targets").join(format!("{name}.rs"))).unwrap();
                assert!(file.contains(&format!("trunkline::fuzzing::{name}(data)")), "{name}: {file}");
                assert!(!corpus(name).is_empty(), "{name}");
            }
        }
    };
}

targets_find_nothing! {
    legacy_stream legacy_line legacy_writers client_header client_control link_frames link_message names certificates tokens redis_answers packets machine
}

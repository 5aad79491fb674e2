//! What keeps a processor busy, for the benchmark: `cpu fib N`, `cpu sha256 MEGABYTES`, `cpu nbody
//! STEPS`. It prints the result, then the microseconds that it took. The benchmark compiles this
//! for the machine too, and compares.

use std::hint::black_box;
use std::time::Instant;

use sha2::{Digest, Sha256};

fn main() {
    let mut args = std::env::args().skip(1);
    let work = args.next().unwrap_or_default();
    let size = args.next().and_then(|size| size.parse().ok()).expect("cpu WORK SIZE");
    let start = Instant::now();
    let result = match work.as_str() {
        "fib" => fib(black_box(size)).to_string(),
        "sha256" => sha256(size),
        "nbody" => format!("{:.9}", nbody(size)),
        _ => panic!("unknown work `{work}`"),
    };
    println!("{result} {}", start.elapsed().as_micros());
}

fn fib(n: u32) -> u64 {
    if n < 2 { n.into() } else { fib(n - 1) + fib(n - 2) }
}

fn sha256(megabytes: u32) -> String {
    let block: Vec<u8> = (0..1_000_000_u32).map(|at| at as u8).collect();
    let mut hasher = Sha256::new();
    for _ in 0..megabytes {
        hasher.update(black_box(&block));
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

const DAYS: f64 = 365.24;
const SUN: f64 = 4.0 * std::f64::consts::PI * std::f64::consts::PI;

struct Body {
    place: [f64; 3],
    speed: [f64; 3],
    mass: f64,
}

/// The energy of the sun and its four largest planets after so many steps of 0.01 years (the
/// Computer Language Benchmarks Game).
fn nbody(steps: u32) -> f64 {
    let planet = |place, speed: [f64; 3], mass: f64| Body {
        place,
        speed: speed.map(|speed| speed * DAYS),
        mass: mass * SUN,
    };
    let mut bodies = [
        planet([0.0; 3], [0.0; 3], 1.0),
        planet(
            [4.841_431_442_464_72, -1.160_320_044_027_428_4, -0.103_622_044_471_123_11],
            [0.001_660_076_642_744_037, 0.007_699_011_184_197_404, -6.904_600_169_720_63e-5],
            9.547_919_384_243_266e-4,
        ),
        planet(
            [8.343_366_718_244_58, 4.124_798_564_124_305, -0.403_523_417_114_321],
            [-0.002_767_425_107_268_624, 0.004_998_528_012_349_172, 2.304_172_975_737_639_3e-5],
            2.858_859_806_661_308e-4,
        ),
        planet(
            [12.894_369_562_139_13, -15.111_151_401_698_631, -0.223_307_578_892_655_73],
            [0.002_964_601_375_647_616, 0.002_378_471_739_594_809_5, -2.965_895_685_402_375_6e-5],
            4.366_244_043_351_563e-5,
        ),
        planet(
            [15.379_697_114_850_917, -25.919_314_609_987_964, 0.179_258_772_950_371_18],
            [0.002_680_677_724_903_893_2, 0.001_628_241_700_382_423, -9.515_922_545_197_159e-5],
            5.151_389_020_466_114_5e-5,
        ),
    ];
    for axis in 0..3 {
        let momentum: f64 = bodies.iter().map(|body| body.speed[axis] * body.mass).sum();
        bodies[0].speed[axis] = -momentum / SUN;
    }
    for _ in 0..steps {
        advance(&mut bodies, 0.01);
    }
    energy(&bodies)
}

fn advance(bodies: &mut [Body; 5], time: f64) {
    for at in 0..bodies.len() {
        let (before, after) = bodies.split_at_mut(at + 1);
        let body = &mut before[at];
        for other in after {
            let way = difference(body, other);
            let square: f64 = way.iter().map(|way| way * way).sum();
            let force = time / (square * square.sqrt());
            for axis in 0..3 {
                body.speed[axis] -= way[axis] * other.mass * force;
                other.speed[axis] += way[axis] * body.mass * force;
            }
        }
    }
    for body in bodies {
        for axis in 0..3 {
            body.place[axis] += time * body.speed[axis];
        }
    }
}

fn energy(bodies: &[Body; 5]) -> f64 {
    let mut energy = 0.0;
    for (at, body) in bodies.iter().enumerate() {
        energy += 0.5 * body.mass * body.speed.iter().map(|speed| speed * speed).sum::<f64>();
        for other in &bodies[at + 1..] {
            let square: f64 = difference(body, other).iter().map(|way| way * way).sum();
            energy -= body.mass * other.mass / square.sqrt();
        }
    }
    energy
}

fn difference(body: &Body, other: &Body) -> [f64; 3] {
    std::array::from_fn(|axis| body.place[axis] - other.place[axis])
}

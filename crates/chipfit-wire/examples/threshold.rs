//! temp
use chipfit_wire::activation::*;
fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}
fn main() {
    let a: Vec<f64> = std::env::args().skip(1).map(|x| x.parse().unwrap()).collect();
    let (n, p, degree) = (a[0] as usize, a[1], a[2] as u8);
    let trials = a[3] as u64;
    for &f in &a[4..] {
        let (mut ok, mut ratio, mut time, mut cells_used) = (0, 0.0, 0.0, 0);
        let mut md = 0.0;
        for t in 0..trials {
            let x: Vec<u8> = (0..n).map(|i| (mix(t ^ mix(i as u64)) >> 20) as u8 / 3 + 128).collect();
            let mut counts = [0f64; 256];
            let thr = (p * 2f64.powi(32)) as u64;
            let mut d = 0;
            let y: Vec<u8> = x.iter().enumerate().map(|(i, &x)| {
                let draw = mix(!t ^ mix(i as u64 + 77));
                if draw & 0xffff_ffff >= thr { return x; }
                let bit = (draw >> 32 & 15) as i32 - 4;
                let change = if bit < 0 { 1 } else { 1 << bit.min(9) };
                let signed = if draw >> 40 & 1 == 0 { change } else { -change };
                let y = (i32::from(x) + signed).clamp(128, 255) as u8;
                let y = if y == x { x ^ 1 } else { y };
                counts[usize::from(y ^ x)] += 1.0;
                d += 1;
                y
            }).collect();
            let mut add = [0f64; 256];
            for (x, y) in x.iter().zip(&y) { add[usize::from(y.wrapping_sub(*x))] += 1.0; }
            let bits: f64 = add.iter().filter(|c| **c > 0.0).map(|c| c * (n as f64 / c).log2()).sum();
            let prior = Prior::from_counts(&counts);
            let width: u8 = std::env::var("WIDTH").map_or(2, |w| w.parse().unwrap());
            let cells = (bits * f / 8.0 / f64::from(width)) as u32;
            let parameters = Parameters { mode: Mode::Cells { cells, degree, width, low_bits: 0 }, key: t };
            let payload = first(&y, &parameters);
            let mut decoder = Decoder::new(n, parameters, prior);
            let cpu = || std::fs::read_to_string("/proc/self/schedstat").unwrap().split(' ').next().unwrap().parse::<f64>().unwrap() / 1e6;
            let start = cpu();
            let r = decoder.try_decode(&x, &payload).unwrap();
            time += cpu() - start;
            if let Outcome::Recovered(z) = r { assert!(z == y); ok += 1; }
            ratio += payload.len() as f64 * 8.0 / bits;
            cells_used = payload.len() - 9;
            md += cells_used as f64 / d as f64;
        }
        let k = trials as f64;
        println!("f {f} sent/H {:.3} cells {cells_used} M/d {:.2} ok {ok}/{trials} {:.1} ms", ratio / k, md / k, time / k);
    }
}

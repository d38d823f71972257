//! Speed of the f32 convolutions of training, per layer shape, pass and instruction set, in processor time.
//!
//! `cargo run --release -p chipfit-kernels --example float_speed [-- [isa ...] [batch=N] [layer=PART] [seconds=S]]`
//!
//! Prints GFLOP/s (two operations per multiply-add, taps on padding included), best of the rounds. `benches/float_speed.py`
//! prints the same for PyTorch.

use chipfit_kernels::float::{FloatConv, FloatScratch};
use chipfit_kernels::{ConvGeometry, Isa};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let named: Vec<Isa> = arguments.iter().filter_map(|name| Isa::parse(name)).collect();
    let isas = if named.is_empty() { vec![Isa::best()] } else { named };
    let option = |key: &str| arguments.iter().find_map(|word| word.strip_prefix(key).map(str::to_owned));
    let batch: usize = option("batch=").map_or(32, |batch| batch.parse().expect("a number"));
    let seconds: f64 = option("seconds=").map_or(0.2, |seconds| seconds.parse().expect("a number"));
    let only = option("layer=").unwrap_or_default();
    for isa in isas {
        println!("{}, batch {batch}, GFLOP/s: forward, input gradient, weight gradient; load in ms", isa.name());
        for (name, geometry) in layers().into_iter().filter(|(name, _)| name.contains(&only)) {
            measure(isa, &name, geometry, batch, seconds);
        }
    }
}

/// Layers of ResNet-8 and ResNet-18 for 32x32, a depthwise one, and classifiers.
fn layers() -> Vec<(String, ConvGeometry)> {
    let conv = |size: usize, input: usize, output: usize, kernel: usize, stride: usize, groups: usize| {
        let geometry = ConvGeometry {
            input: [size; 2],
            in_channels: input,
            out_channels: output,
            groups,
            kernel: [kernel; 2],
            stride: [stride; 2],
            dilation: [1; 2],
            pads: [kernel / 2; 4],
        };
        let kind = if groups > 1 { "depthwise " } else { "" };
        (format!("{kind}{kernel}x{kernel}/{stride} {input}->{output} at {size}"), geometry)
    };
    let dense = |size, input, output, kernel, stride| conv(size, input, output, kernel, stride, 1);
    vec![
        dense(32, 3, 16, 3, 1),
        dense(32, 16, 16, 3, 1),
        dense(32, 16, 32, 3, 2),
        dense(32, 16, 32, 1, 2),
        dense(16, 32, 32, 3, 1),
        dense(16, 32, 64, 3, 2),
        dense(16, 32, 64, 1, 2),
        dense(8, 64, 64, 3, 1),
        dense(32, 3, 64, 3, 1),
        dense(32, 64, 64, 3, 1),
        dense(32, 64, 128, 3, 2),
        dense(32, 64, 128, 1, 2),
        dense(16, 128, 128, 3, 1),
        dense(16, 128, 256, 3, 2),
        dense(16, 128, 256, 1, 2),
        dense(8, 256, 256, 3, 1),
        dense(8, 256, 512, 3, 2),
        dense(8, 256, 512, 1, 2),
        dense(4, 512, 512, 3, 1),
        conv(32, 64, 64, 3, 1, 64),
        conv(32, 64, 64, 3, 2, 64),
        conv(8, 256, 256, 3, 1, 256),
        dense(1, 512, 10, 1, 1),
        dense(1, 512, 1000, 1, 1),
    ]
}

fn measure(isa: Isa, name: &str, geometry: ConvGeometry, batch: usize, seconds: f64) {
    let mut state = 1_u64;
    let mut values = |n: usize| -> Vec<f32> {
        let mut value = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| value()).collect()
    };
    let operations = 2.0 * geometry.macs() as f64 * batch as f64;
    let mut conv = FloatConv::new(isa, geometry).expect("an available instruction set");
    let mut scratch = FloatScratch::new();
    let input = values(batch * conv.input_elements());
    let gradient = values(batch * conv.output_elements());
    let weights = values(conv.weight_elements());
    let bias = values(conv.geometry().out_channels);
    let mut output = vec![0.0; gradient.len()];
    let mut input_gradient = vec![0.0; input.len()];
    let mut weight_gradient = vec![0.0; weights.len()];
    let load = best(seconds / 4.0, || conv.load(&weights).expect("sizes"));
    let passes = [
        best(seconds, || conv.forward(&mut scratch, batch, &input, Some(&bias), &mut output).expect("sizes")),
        best(seconds, || {
            conv.input_gradient(&mut scratch, batch, &gradient, &mut input_gradient).expect("sizes");
        }),
        best(seconds, || {
            weight_gradient.fill(0.0);
            conv.weight_gradient(&mut scratch, batch, &input, &gradient, &mut weight_gradient).expect("sizes");
        }),
    ];
    let [forward, back, sums] = passes.map(|seconds| operations / seconds / 1e9);
    println!("{name:30} {forward:7.1} {back:7.1} {sums:7.1}   {:8.3}", load * 1e3);
}

/// Least processor time of the rounds that fit the time given; at least three.
fn best(seconds: f64, mut work: impl FnMut()) -> f64 {
    let begin = processor_seconds();
    let mut best = f64::MAX;
    let mut rounds = 0;
    while rounds < 3 || processor_seconds() - begin < seconds {
        let start = processor_seconds();
        work();
        best = best.min(processor_seconds() - start);
        rounds += 1;
    }
    best
}

/// Processor time of this thread: other users of the machine do not count.
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
fn processor_seconds() -> f64 {
    const CLOCK_THREAD_CPUTIME_ID: usize = 3;
    let mut time = [0_i64; 2];
    // SAFETY: `clock_gettime` writes two 64-bit integers; the system call clobbers nothing else of ours.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        std::arch::asm!("syscall", inlateout("rax") 228_usize => _, in("rdi") CLOCK_THREAD_CPUTIME_ID,
            in("rsi") time.as_mut_ptr(), lateout("rcx") _, lateout("r11") _, options(nostack));
        #[cfg(target_arch = "aarch64")]
        std::arch::asm!("svc 0", in("x8") 113_usize, inlateout("x0") CLOCK_THREAD_CPUTIME_ID => _,
            in("x1") time.as_mut_ptr(), options(nostack));
    }
    time[0] as f64 + time[1] as f64 / 1e9
}

/// Wall time, where processor time has no portable clock.
#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
fn processor_seconds() -> f64 {
    use std::time::{SystemTime, UNIX_EPOCH};
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

//! Speed of the convolutions of ResNet-18, per layer shape and instruction set, in processor time.
//!
//! `cargo run --release -p chipfit-kernels --example speed [-- [isa ...] [batch=N] [net=cifar|imagenet] [layer=PART]]`
//!
//! With `bytes`: element-wise loops, pooling, depthwise layers and patches instead.
//! Prints GOP/s (two operations per multiply-accumulate), and the sum over a network's layers as inferences per second:
//! convolutions and the classifier only, each layer's weights taken from memory as far as its neighbours evict them.

use chipfit_kernels::{Add, Conv, ConvGeometry, Isa, Pool, Requantize, Rounding, Scratch, lookup, sum_positions};

struct Layer {
    /// One per occurrence, so that each brings its own weights through the caches.
    convs: Vec<Conv>,
    name: String,
    input: Vec<u8>,
    output: Vec<u8>,
    requantize: Requantize,
    best: f64,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let named: Vec<Isa> = arguments.iter().filter_map(|name| Isa::parse(name)).collect();
    let isas = if named.is_empty() { Isa::available() } else { named };
    let option = |key: &str| arguments.iter().find_map(|word| word.strip_prefix(key).map(str::to_owned));
    let batches = option("batch=").map_or(vec![1, 32], |batch| vec![batch.parse().expect("a number")]);
    let nets = option("net=").map_or(vec!["cifar".to_owned(), "imagenet".to_owned()], |net| vec![net]);
    let only = option("layer=").unwrap_or_default();
    if arguments.iter().any(|word| word == "bytes") {
        isas.iter().for_each(|&isa| measure_bytes(isa));
        return;
    }
    for net in &nets {
        for &batch in &batches {
            for &isa in &isas {
                if isa != Isa::Scalar || arguments.iter().any(|word| word == "scalar") {
                    measure(net, batch, isa, &only);
                }
            }
        }
    }
}

/// Tables, additions, pooling, depthwise layers and patches of single outputs.
fn measure_bytes(isa: Isa) {
    let best = |work: &mut dyn FnMut()| {
        (0..200).fold(f64::MAX, |best, _| {
            let start = processor_seconds();
            work();
            best.min(processor_seconds() - start)
        })
    };
    let input: Vec<u8> = (0..1 << 16).map(|index: u32| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let other: Vec<u8> = input.iter().rev().copied().collect();
    let mut out = vec![0; input.len()];
    let rate = |bytes: usize, seconds: f64| bytes as f64 / seconds / 1e9;
    let table: [u8; 256] = std::array::from_fn(|index| (index * 7) as u8);
    let seconds = best(&mut || lookup(isa, &table, &input, &mut out).expect("sizes"));
    println!("{}: table {:.1} GB/s", isa.name(), rate(input.len(), seconds));
    let add = Add { left: 0.6, right: 0.7, fixed: 3.0, low: 0, high: 255, rounding: Rounding::Separate };
    let seconds = best(&mut || add.run(isa, &input, &other, &mut out).expect("sizes"));
    println!("{}: addition {:.1} GB/s of output", isa.name(), rate(input.len(), seconds));
    let pool = Pool { input: [32; 2], channels: 64, kernel: [3; 2], stride: [2; 2], dilation: [1; 2], pads: [1; 4] };
    let [rows, columns] = pool.output().expect("valid");
    let mut pooled = vec![0; rows * columns * 64];
    let seconds = best(&mut || pool.max(isa, &input, 0..rows, &mut pooled).expect("sizes"));
    println!("{}: 3x3/2 maximum {:.1} GB/s of input", isa.name(), rate(input.len(), seconds));
    let mut sums = vec![0; 64];
    let seconds = best(&mut || sum_positions(isa, &input, &mut sums).expect("sizes"));
    println!("{}: sum over positions {:.1} GB/s", isa.name(), rate(input.len(), seconds));

    let geometry = ConvGeometry {
        input: [32; 2],
        in_channels: 64,
        out_channels: 64,
        groups: 64,
        kernel: [3; 2],
        stride: [1; 2],
        dilation: [1; 2],
        pads: [1; 4],
    };
    let weights: Vec<i8> = input.iter().map(|byte| byte.cast_signed()).collect();
    let scale = Requantize { multipliers: vec![1e-3; 64], zero_point: 3, low: 0, high: 255 };
    let mut scratch = Scratch::new();
    let conv = Conv::new(isa, geometry.clone(), &weights[..64 * 9], &[0; 64], 7).expect("available");
    let seconds = best(&mut || conv.run(&input, 0..32, &scale, &mut out, &mut scratch).expect("sizes"));
    println!("{}: 3x3 depthwise, 64 at 32, {:.0} GOP/s", isa.name(), rate(2 * 64 * 9 * 1024, seconds));
    let geometry = ConvGeometry { groups: 1, ..geometry };
    let conv = Conv::new(isa, geometry, &weights[..64 * 576], &[0; 64], 7).expect("available");
    let mut total = 0_i32;
    let seconds = best(&mut || {
        for column in 0..32 {
            total = total.wrapping_add(conv.partial(&input, 5, column, column, 288));
        }
    });
    println!("{}: partial sum of 288 products, {:.0} ns ({total})", isa.name(), seconds / 32.0 * 1e9);
}

/// Name, shapes, how often the network has it.
fn layers(net: &str) -> Vec<(String, ConvGeometry, usize)> {
    let conv = |size: usize, input: usize, output: usize, kernel: usize, stride: usize| ConvGeometry {
        input: [size; 2],
        in_channels: input,
        out_channels: output,
        groups: 1,
        kernel: [kernel; 2],
        stride: [stride; 2],
        dilation: [1; 2],
        pads: [kernel / 2; 4],
    };
    let (first, stem) = match net {
        "cifar" => (32, conv(32, 3, 64, 3, 1)),
        _ => (56, conv(224, 3, 64, 7, 2)),
    };
    let mut all = vec![(stem, 1), (conv(first, 64, 64, 3, 1), 4)];
    let mut size = first;
    for channels in [128, 256, 512] {
        all.push((conv(size, channels / 2, channels, 3, 2), 1));
        all.push((conv(size, channels / 2, channels, 1, 2), 1));
        size /= 2;
        all.push((conv(size, channels, channels, 3, 1), 3));
    }
    all.push((conv(1, 512, if net == "cifar" { 10 } else { 1000 }, 1, 1), 1));
    let name = |g: &ConvGeometry| {
        let [kernel, _] = g.kernel;
        format!("{kernel}x{kernel}/{} {}->{} at {}", g.stride[0], g.in_channels, g.out_channels, g.input[0])
    };
    all.into_iter().map(|(geometry, times)| (name(&geometry), geometry, times)).collect()
}

fn measure(net: &str, batch: usize, isa: Isa, only: &str) {
    let mut scratch = Scratch::new();
    let mut state = 1_u64;
    let mut byte = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    let mut made: Vec<Layer> = Vec::new();
    for (name, geometry, times) in layers(net).into_iter().filter(|(name, ..)| name.contains(only)) {
        let [rows, columns] = geometry.output();
        let pixels = geometry.input[0] * geometry.input[1];
        let input = (0..batch * pixels * geometry.in_channels).map(|_| byte()).collect();
        let bias = vec![3; geometry.out_channels];
        let requantize =
            Requantize { multipliers: vec![1e-4; geometry.out_channels], zero_point: 3, low: 3, high: 255 };
        let output = vec![0; batch * rows * columns * geometry.out_channels];
        let convs: Vec<Conv> = (0..times)
            .map(|_| {
                let n_weights = geometry.out_channels * geometry.products();
                let weights: Vec<i8> = (0..n_weights).map(|_| byte().cast_signed()).collect();
                Conv::new(isa, geometry.clone(), &weights, &bias, 7).expect("an available instruction set")
            })
            .collect();
        made.push(Layer { convs, name, input, output, requantize, best: f64::MAX });
    }
    // The network's own order, so that caches are as cold as they are there.
    let rounds = if isa == Isa::Scalar { 1 } else { (200 / batch).clamp(8, 100) };
    let mut fastest = f64::MAX;
    for _ in 0..rounds {
        let round = processor_seconds();
        for Layer { convs, input, output, requantize, best, .. } in &mut made {
            let start = processor_seconds();
            for conv in convs.iter() {
                let rows = conv.output()[0];
                conv.run(input, 0..rows, &*requantize, output, &mut scratch).expect("sizes");
            }
            *best = best.min((processor_seconds() - start) / convs.len() as f64);
        }
        fastest = fastest.min(processor_seconds() - round);
    }
    println!("{net}, batch {batch}, {}:", isa.name());
    let mut macs = 0;
    for Layer { convs, name, best, .. } in &made {
        let work: u64 = convs.iter().map(|conv| conv.geometry().macs() * batch as u64).sum();
        let rate = 2.0 * work as f64 / (best * convs.len() as f64) / 1e9;
        println!("  {name:26} x{}  {:9.1} us  {rate:7.0} GOP/s", convs.len(), best * 1e6);
        macs += work;
    }
    println!(
        "  all: {:.0} us, {:.0} GOP/s, {:.1} inferences/s; weights {:.1} MB, scratch {:.0} KB",
        fastest * 1e6,
        2.0 * macs as f64 / fastest / 1e9,
        batch as f64 / fastest,
        made.iter().flat_map(|layer| &layer.convs).map(|conv| conv.bytes() as f64).sum::<f64>() / 1e6,
        scratch.bytes() as f64 / 1e3,
    );
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

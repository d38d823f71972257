//! The tests of `twins`, over settings that proptest draws and shrinks.

mod common;

use chipfit_kernels::ConvGeometry;
use common::Case;
use proptest::prelude::*;

fn cases() -> u32 {
    let asked = std::env::var("CHIPFIT_CASES").ok().and_then(|cases| cases.parse().ok());
    // A case runs every instruction set; the naive loop is what takes the time.
    asked.map_or(256, |cases: u32| cases.div_ceil(4))
}

fn axis_pair(most: usize) -> impl Strategy<Value = [usize; 2]> {
    [1..=most, 1..=most]
}

prop_compose! {
    fn geometries()(
        input in [1_usize..=10, 1_usize..=24],
        groups in prop_oneof![3 => Just(1_usize), 1 => 2..=5_usize, 1 => 30..=140_usize],
        group_in in prop_oneof![1 => Just(1_usize), 2 => 1..=5_usize, 2 => 6..=140_usize],
        group_out in prop_oneof![1 => Just(1_usize), 2 => 1..=5_usize, 2 => 6..=140_usize],
        kernel in axis_pair(4),
        stride in axis_pair(3),
        dilation in axis_pair(3),
        pads in prop::array::uniform4(0_usize..=4),
    ) -> ConvGeometry {
        ConvGeometry {
            input,
            in_channels: groups * group_in,
            out_channels: groups * group_out,
            groups,
            kernel,
            stride,
            dilation,
            pads,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_global_rejects: 1_000_000, ..ProptestConfig::default() })]

    #[test]
    fn convolutions_equal_the_naive_loops(geometry in geometries(), pictures in 1_usize..=4, seed: u64) {
        prop_assume!(geometry.checked_output().is_ok() && geometry.macs() < 300_000);
        Case::random(geometry, pictures, seed).check(seed);
    }

    #[test]
    fn depthwise_equals_the_naive_loops(
        geometry in geometries(), channels in 1_usize..=150, pictures in 1_usize..=2, seed: u64,
    ) {
        let geometry = ConvGeometry { in_channels: channels, out_channels: channels, groups: channels, ..geometry };
        prop_assume!(geometry.checked_output().is_ok() && geometry.macs() < 300_000);
        Case::random(geometry, pictures, seed).check(seed);
    }
}

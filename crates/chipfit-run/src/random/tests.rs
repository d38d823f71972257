//! Shapes, distributions and reproducibility.

use super::*;
use chipfit_model::build::{self, DimSpec};
use chipfit_model::proto::{GraphProto, ModelProto};

fn model(inputs: &[(&str, DataType, &[DimSpec])]) -> Model {
    let input = inputs.iter().map(|(name, dtype, dims)| build::value_info(name, *dtype, dims)).collect();
    let graph = GraphProto { input, ..Default::default() };
    Model { proto: ModelProto { graph: graph.into(), ..Default::default() }, folder: None }
}

fn overrides(list: &[(&str, &[usize])]) -> BTreeMap<String, Vec<usize>> {
    list.iter().map(|(name, dims)| ((*name).to_owned(), dims.to_vec())).collect()
}

fn shape_of(dims: &[DimSpec], given: &[(&str, &[usize])]) -> Result<(Vec<usize>, Vec<usize>), RandomError> {
    let mut shapes = input_shapes(&model(&[("x", DataType::Float, dims)]), &overrides(given))?;
    let shape = shapes.remove(0);
    Ok((shape.dims, shape.defaulted))
}

#[test]
fn free_dimensions_take_the_documented_defaults() {
    let free = |s: &str| DimSpec::Named(s.to_owned());
    let image = [free("n"), 3.into(), free("h"), free("w")];
    assert_eq!(shape_of(&image, &[]), Ok((vec![1, 3, 64, 64], vec![0, 2, 3])));
    assert_eq!(shape_of(&image, &[("x", &[2, 3, 8, 9])]), Ok((vec![2, 3, 8, 9], vec![])));
    assert_eq!(shape_of(&[(-1).into(), 0.into()], &[("x", &[7, 0])]), Ok((vec![7, 0], vec![])));
    assert_eq!(shape_of(&[(-1).into(), 5.into()], &[]), Ok((vec![1, 5], vec![0])));
    assert_eq!(shape_of(&[], &[]), Ok((vec![], vec![])));
    let channels = shape_of(&[1.into(), free("c"), 8.into(), 8.into()], &[]);
    assert!(matches!(&channels, Err(RandomError::FreeDimension { axis: 1, .. })), "{channels:?}");
    assert!(channels.unwrap_err().to_string().contains("--input x"));
    assert!(matches!(shape_of(&[1.into(), free("t")], &[]), Err(RandomError::FreeDimension { axis: 1, .. })));
}

#[test]
fn a_named_dimension_is_one_length_everywhere() {
    let n = || DimSpec::Named("n".to_owned());
    let two = model(&[("a", DataType::Float, &[n(), 2.into()]), ("b", DataType::Int8, &[3.into(), n()])]);
    let shapes = input_shapes(&two, &overrides(&[("b", &[3, 5])])).unwrap();
    assert_eq!((&shapes[0].dims, &shapes[1].dims), (&vec![5, 2], &vec![3, 5]));
    for bad in [overrides(&[("a", &[5, 2]), ("b", &[3, 6])]), overrides(&[("a", &[5, 3])]), overrides(&[("a", &[5])])] {
        assert!(matches!(input_shapes(&two, &bad), Err(RandomError::Contradiction { .. })), "{bad:?}");
    }
    for symbol in ["?", "-1", "None", ""] {
        let free = || DimSpec::Named(symbol.to_owned());
        let found = shape_of(&[free(), 3.into(), free(), free()], &[("x", &[1, 3, 48, 160])]);
        assert_eq!(found, Ok((vec![1, 3, 48, 160], vec![])), "{symbol}");
    }
    let unknown = input_shapes(&two, &overrides(&[("c", &[1])]));
    let want = RandomError::NoSuchInput { name: "c".into(), inputs: vec!["a".into(), "b".into()] };
    assert_eq!(unknown, Err(want));
}

#[test]
fn initializers_are_no_inputs() {
    let mut file = model(&[("w", DataType::Float, &[2.into()]), ("x", DataType::Float, &[3.into()])]);
    file.proto.graph.as_option_mut().unwrap().initializer =
        vec![ConstTensor::from_f32(vec![2], &[0.0; 2]).unwrap().to_proto("w")];
    let found = inputs(&file, &BTreeMap::new(), 0).unwrap();
    assert_eq!(found.iter().map(|(n, t)| (n.as_str(), t.dims())).collect::<Vec<_>>(), [("x", &[3usize][..])]);
}

#[test]
fn hostile_shapes_allocate_nothing() {
    for dims in [vec![i64::MAX.into(), i64::MAX.into()], vec![(1i64 << 40).into()], vec![DimSpec::Known(1 << 29)]] {
        let file = model(&[("x", DataType::Float, &dims)]);
        assert!(matches!(inputs(&file, &BTreeMap::new(), 0), Err(RandomError::TooLarge { .. })), "{dims:?}");
    }
    let complex = model(&[("x", DataType::Complex64, &[1.into()])]);
    assert!(matches!(inputs(&complex, &BTreeMap::new(), 0), Err(RandomError::Unsupported { .. })));
    let mut untyped = model(&[("x", DataType::Float, &[])]);
    untyped.proto.graph.as_option_mut().unwrap().input[0].r#type = Default::default();
    assert!(matches!(inputs(&untyped, &BTreeMap::new(), 0), Err(RandomError::Unsupported { .. })));
}

#[test]
fn an_element_depends_on_seed_input_and_position_alone() {
    let make = |seed, input, n| tensor(DataType::Float, vec![n], Key { seed, input }).unwrap();
    let long = make(7, 1, 1000);
    assert_eq!(make(7, 1, 10).bytes()[..], long.bytes()[..40]);
    assert_eq!(make(7, 1, 1000), long);
    for other in [make(8, 1, 1000), make(7, 0, 1000), make(0, 7, 1000)] {
        let (a, b) = (long.to_f64_vec().unwrap(), other.to_f64_vec().unwrap());
        assert!(a.iter().zip(&b).filter(|(a, b)| a == b).count() < 3);
    }
}

#[test]
fn the_first_values_stay_what_they_are() {
    // Reports name a seed; another version must make the same inputs from it.
    let values = tensor(DataType::Int32, vec![3], Key { seed: 0, input: 0 }).unwrap().to_i64_vec().unwrap();
    // Computed by a SplitMix64 written in Python.
    assert_eq!(values, [194_742_870, -1_313_282_748, -1_419_541_179]);
}

#[test]
fn floats_are_uniform_in_the_half_open_interval() {
    for dtype in [DataType::Float, DataType::Double, DataType::Float16, DataType::Bfloat16] {
        let values = tensor(dtype, vec![40_000], Key { seed: 3, input: 0 }).unwrap().to_f64_vec().unwrap();
        assert!(values.iter().all(|v| (-1.0..1.0).contains(v)), "{}", dtype.name());
        let mut counts = [0usize; 16];
        values.iter().for_each(|v| counts[((v + 1.0) * 8.0) as usize] += 1);
        // 2,500 expected in each, standard deviation 48.
        assert!(counts.iter().all(|c| c.abs_diff(2500) < 290), "{}: {counts:?}", dtype.name());
    }
    let halves = tensor(DataType::Bfloat16, vec![4000], Key { seed: 1, input: 0 }).unwrap().to_f64_vec().unwrap();
    assert!(halves.iter().all(|v| (v * 128.0).fract() == 0.0), "the grid is exact in bfloat16");
}

#[test]
fn integers_cover_their_stated_ranges() {
    let range = |dtype| {
        let values = tensor(dtype, vec![50_000], Key { seed: 5, input: 2 }).unwrap().to_i64_vec().unwrap();
        (*values.iter().min().unwrap(), *values.iter().max().unwrap())
    };
    assert_eq!(range(DataType::Int8), (-128, 127));
    assert_eq!(range(DataType::Uint8), (0, 255));
    assert_eq!(range(DataType::Int64), (1, 8));
    assert_eq!(range(DataType::Bool), (0, 1));
    let (low, high) = range(DataType::Int16);
    assert!(low < -32_700 && high > 32_700);
    let (low, high) = range(DataType::Int32);
    assert!(low < -2_000_000_000 && high > 2_000_000_000);
    let packed = tensor(DataType::Uint4, vec![5], Key { seed: 0, input: 0 }).unwrap();
    assert_eq!((packed.bytes().len(), packed.bytes()[2] >> 4), (3, 0));
}

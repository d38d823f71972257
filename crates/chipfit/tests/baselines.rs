//! The two approximate baselines show on DCGAN what is known of them (docs/split-deconvolution.md): Shi's output is
//! the exact one without its first 14 rows and columns, Chang's is shifted by as much and wrong at its end.

use std::collections::BTreeMap;

use chipfit_deconv::{Form, Options, plan};
use chipfit_model::zoo::{ZooOptions, build};
use chipfit_model::{Index, Model, shape};
use chipfit_run::engine::{Engine, RtenEngine};
use chipfit_run::random;

/// Rows and columns that three layers lose: 2 at 16, 32 and 64 pixels each, seen at 64.
const SHIFT: usize = 14;
/// Rounding of three layers, relative to an output within -1..1.
const TOLERANCE: f64 = 1e-5;

/// The picture as `[channel][row][column]`, with its height and width.
struct Picture {
    values: Vec<f64>,
    height: usize,
    width: usize,
}

impl Picture {
    fn of(model: &Model) -> Self {
        let inputs = random::inputs(model, &BTreeMap::new(), 1).unwrap();
        let bytes = model.to_bytes().unwrap().into();
        let (_, output) = RtenEngine::default().load(&bytes, None).unwrap().run(&inputs).unwrap().remove(0);
        let dims = output.dims();
        assert_eq!(dims[..2], [1, 3]);
        Self { values: output.to_f64_vec().unwrap(), height: dims[2], width: dims[3] }
    }

    fn at(&self, channel: usize, row: usize, column: usize) -> f64 {
        self.values[(channel * self.height + row) * self.width + column]
    }

    /// The largest difference to `other` shifted, over the first `size` rows and columns.
    fn difference_to_shifted(&self, other: &Self, size: usize) -> f64 {
        let places = (0..3).flat_map(|c| (0..size).flat_map(move |y| (0..size).map(move |x| (c, y, x))));
        places.map(|(c, y, x)| (self.at(c, y, x) - other.at(c, y + SHIFT, x + SHIFT)).abs()).fold(0.0, f64::max)
    }
}

fn dcgan(form: Option<Form>) -> Picture {
    let mut model = build("dcgan", &ZooOptions::default()).unwrap();
    if let Some(form) = form {
        let index = Index::new(&model);
        let shapes = shape::infer(&index, &BTreeMap::new()).unwrap();
        let options = Options { form: Some(form), ..Options::default() };
        let patch = plan(&index, &shapes, &options).unwrap().patch;
        model.apply(&patch).unwrap();
    }
    Picture::of(&model)
}

#[test]
fn shi_loses_the_first_rows_and_columns_and_is_exact_in_the_rest() {
    let (exact, shi) = (dcgan(None), dcgan(Some(Form::Shi)));
    assert_eq!((exact.height, exact.width), (64, 64));
    assert_eq!((shi.height, shi.width), (64 - SHIFT, 64 - SHIFT));
    let difference = shi.difference_to_shifted(&exact, 64 - SHIFT);
    assert!(difference < TOLERANCE, "{difference}");
}

#[test]
fn chang_is_shifted_as_much_and_wrong_at_its_end() {
    let (exact, chang) = (dcgan(None), dcgan(Some(Form::Chang)));
    assert_eq!((chang.height, chang.width), (64, 64));
    // Each layer's wrong rows reach one or two further into the next: 47 of the 50 that overlap are right.
    let inside = chang.difference_to_shifted(&exact, 47);
    assert!(inside < TOLERANCE, "{inside}");
    let overlap = chang.difference_to_shifted(&exact, 64 - SHIFT);
    assert!(overlap > 0.1, "{overlap}");
}

#[test]
fn the_exact_forms_are_not_shifted() {
    let exact = dcgan(None);
    for form in [Form::Split, Form::RowSplit, Form::Fused, Form::ZeroPad] {
        let other = dcgan(Some(form));
        assert_eq!((other.height, other.width), (64, 64));
        let difference = other.values.iter().zip(&exact.values).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(difference < TOLERANCE, "{form:?}: {difference}");
    }
}

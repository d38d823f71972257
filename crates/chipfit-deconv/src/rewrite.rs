//! From a model to a patch: which ConvTranspose becomes what, and why.
//!
//! [`plan`] reads every ConvTranspose, chooses a form (asked for, decided by measurement, ranked by a target's
//! estimate, or by the fixed rule), builds it and gathers all edits into one [`Patch`]. A node that cannot be
//! rewritten stays, with the reason in its report; the model is not touched here.

use std::collections::{BTreeMap, BTreeSet};

use chipfit_model::build::is_op;
use chipfit_model::index::node_label;
use chipfit_model::{Index, Patch, ScopeEdit, ScopeId, Shapes};

use crate::emit::Names;
use crate::forms::{BuildOptions, Built, ConvWork, build};
use crate::source::{Outline, Source, outline};
use crate::target::{Output, Target};

/// How a transposed convolution is computed (docs/split-deconvolution.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Form {
    /// One tight convolution per phase.
    Split,
    /// One convolution per phase of all axes but the last, fused along the last.
    RowSplit,
    /// One convolution for all phases.
    Fused,
    /// Zeros between the inputs, then one convolution: the baseline.
    ZeroPad,
    /// Shi et al. 1609.07009: does not preserve the result.
    Shi,
    /// Chang et al. 1801.05997: does not preserve the result.
    Chang,
}

impl Form {
    /// All forms.
    pub const ALL: [Self; 6] = [Self::Split, Self::RowSplit, Self::Fused, Self::ZeroPad, Self::Shi, Self::Chang];

    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Split => "split",
            Self::RowSplit => "rowsplit",
            Self::Fused => "fused",
            Self::ZeroPad => "zero-pad",
            Self::Shi => "shi",
            Self::Chang => "chang",
        }
    }

    /// Whether it preserves the result.
    pub fn is_exact(self) -> bool {
        !matches!(self, Self::Shi | Self::Chang)
    }
}

/// How phases are woven into the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Interleave {
    /// One DepthToSpace (2-D, equal strides).
    DepthToSpace,
    /// Reshape, Transpose, Reshape.
    Reshape,
    /// Concat and Reshape, no Transpose.
    Concat,
}

impl Interleave {
    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::DepthToSpace => "depth-to-space",
            Self::Reshape => "reshape",
            Self::Concat => "concat",
        }
    }
}

/// What `fused` does about outputs before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Crop {
    /// The smallest kernel, then a Slice.
    #[default]
    Slice,
    /// Kernels aligned so that no Slice is needed at the begin.
    Alignment,
}

/// Which side takes the odd pad of `auto_pad` before opset 11.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SameRule {
    /// What runtimes do.
    #[default]
    Runtimes,
    /// What the text of opset 1 says.
    Spec,
}

/// A form and its interleave (`None`: as for any node of that form); `None` to keep the node.
pub type Decision = Option<(Form, Option<Interleave>)>;

/// What to do. `Default` rewrites every ConvTranspose that can be, by the fixed rule.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The form of every node; `None`: chosen per node.
    pub form: Option<Form>,
    /// The interleave; `None`: DepthToSpace where it applies, else Reshape.
    pub interleave: Option<Interleave>,
    /// See [`Crop`].
    pub crop: Crop,
    /// No emitted convolution has more output channels.
    pub max_channels: Option<usize>,
    /// If not empty: only nodes of these names (or first output names).
    pub only: Vec<String>,
    /// Nodes of these names (or first output names) stay.
    pub keep: Vec<String>,
    /// See [`SameRule`].
    pub opset1_same: SameRule,
    /// The processor: `auto` ranks the forms by its estimate, and its limits are kept.
    pub target: Option<Target>,
    /// Decisions made elsewhere (by measurement): scope and node position to form and interleave, `None` to keep.
    pub decided: BTreeMap<(ScopeId, usize), Decision>,
}

/// The part of the graph that a rewrite replaced: from one value to another, both of which still exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The scope; its number is the same before and after.
    pub scope: ScopeId,
    /// The name of the value it starts from: the ConvTranspose's input, or, quantised, what is dequantized to it.
    pub input: String,
    /// The name of the value it ends in: the ConvTranspose's output, or the QuantizeLinear's behind it.
    pub output: String,
    /// The name of the original ConvTranspose's output.
    pub conv_transpose: String,
}

/// What became of one ConvTranspose.
#[derive(Clone, Debug)]
pub struct NodeReport {
    /// Its name, or operator and position.
    pub name: String,
    /// Scope and position in the original model.
    pub place: (ScopeId, usize),
    /// The form; `None`: kept.
    pub form: Option<Form>,
    /// The interleave; `None` where there is nothing to weave or the node was kept.
    pub interleave: Option<Interleave>,
    /// Kernel per axis (empty where unknown).
    pub kernel: Vec<usize>,
    /// Strides.
    pub strides: Vec<usize>,
    /// Dilations.
    pub dilations: Vec<usize>,
    /// Groups.
    pub group: usize,
    /// Pads as resolved: all begins, then all ends.
    pub pads: Vec<i64>,
    /// Output padding as resolved.
    pub output_padding: Vec<i64>,
    /// Multiply-accumulates of the original; `None` where shapes are unknown. Counted as docs define.
    pub macs_before: Option<u64>,
    /// Of the emitted convolutions (of the original where kept).
    pub macs_after: Option<u64>,
    /// Of the zero-pad baseline.
    pub macs_zero_pad: Option<u64>,
    /// Weights and biases of the original.
    pub params_before: u64,
    /// Of the emitted convolutions.
    pub params_after: u64,
    /// Why it was kept, or why this form.
    pub reason: String,
    /// The emitted convolutions, for cost models.
    pub work: Vec<ConvWork>,
    /// Things the user should know.
    pub warnings: Vec<String>,
    /// What was replaced; `None`: kept.
    pub segment: Option<Segment>,
}

/// A plan: the patch to apply and what it does.
#[derive(Clone, Debug, Default)]
pub struct Rewrite {
    /// For [`chipfit_model::Model::apply`].
    pub patch: Patch,
    /// One entry per ConvTranspose of the model, in file order, subgraphs and functions included.
    pub nodes: Vec<NodeReport>,
}

/// Why nothing could be planned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RewriteError {
    /// `--only` or `--keep` names no ConvTranspose.
    #[error("{flag} '{name}': the model has no ConvTranspose of that name")]
    NoSuchNode {
        /// The flag.
        flag: &'static str,
        /// The name.
        name: String,
    },
}

/// Plans the rewrite of every ConvTranspose of a model.
///
/// # Errors
/// [`RewriteError`]. A node that cannot be rewritten is no error: it is kept and its report says why.
pub fn plan(index: &Index<'_>, shapes: &Shapes, options: &Options) -> Result<Rewrite, RewriteError> {
    let mut places: Vec<(ScopeId, usize)> = Vec::new();
    for (scope, s) in index.scopes.iter().enumerate() {
        places.extend((0..s.nodes.len()).filter(|&i| is_op(&s.nodes[i], "ConvTranspose")).map(|i| (scope, i)));
    }
    let is_called = |place: &(ScopeId, usize), name: &str| {
        let node = &index.scopes[place.0].nodes[place.1];
        node_label(node, place.1) == name || node.output.iter().any(|o| o == name)
    };
    for (flag, names) in [("--only", &options.only), ("--keep", &options.keep)] {
        if let Some(name) = names.iter().find(|n| !places.iter().any(|p| is_called(p, n))) {
            return Err(RewriteError::NoSuchNode { flag, name: name.clone() });
        }
    }
    let mut names = Names::of(index);
    let mut edits: BTreeMap<ScopeId, ScopeEdit> = BTreeMap::new();
    let mut nodes = Vec::with_capacity(places.len());
    for place in places {
        let (scope, position) = place;
        let node = &index.scopes[scope].nodes[position];
        let outline = outline(index, shapes, scope, position);
        let kept_by_flag = if options.keep.iter().any(|n| is_called(&place, n)) {
            Some("kept: --keep".to_owned())
        } else if !options.only.is_empty() && !options.only.iter().any(|n| is_called(&place, n)) {
            Some("kept: not among --only".to_owned())
        } else {
            None
        };
        let read = match kept_by_flag {
            Some(reason) => Err(reason),
            None => Source::read(index, shapes, scope, position, options.opset1_same)
                .map_err(|reason| format!("kept: {reason}")),
        };
        let label = node_label(node, position);
        let source = match read {
            Ok(source) => source,
            Err(reason) => {
                nodes.push(kept(label, place, outline, reason, Vec::new()));
                continue;
            }
        };
        let (form, built, reason) = match choose(index, &source, options, &mut names) {
            Choice::Rewrite { form, built, reason } => (form, *built, reason),
            Choice::Keep(reason) => {
                nodes.push(kept(label, place, outline, reason, source.warnings));
                continue;
            }
        };
        nodes.push(report(label, place, &source, outline, form, &built, reason));
        let edit = edits.entry(scope).or_insert_with(|| ScopeEdit::new(index.scopes[scope].path.clone()));
        edit.forget_lengths |= form == Form::Shi;
        add_to_edit(edit, &source, built);
    }
    Ok(Rewrite { patch: Patch { edits: edits.into_values().collect() }, nodes })
}

fn add_to_edit(edit: &mut ScopeEdit, source: &Source<'_>, built: Built) {
    let last = source.tail.as_ref().map_or(source.position, |t| t.quantize.0);
    edit.remove_nodes.insert(source.position);
    if let Some(tail) = &source.tail {
        edit.remove_nodes.extend(tail.activation.map(|(at, _)| at));
        edit.remove_nodes.insert(tail.quantize.0);
    }
    edit.insert_nodes.push((last, built.nodes));
    edit.add_initializers.extend(built.initializers);
    let constants = source.node.input.iter().skip(1).filter(|n| !n.is_empty());
    edit.prune.extend(constants.cloned());
    if source.input.is_some() {
        edit.prune.insert(source.x().to_owned());
    }
}

enum Choice {
    Rewrite { form: Form, built: Box<Built>, reason: String },
    Keep(String),
}

/// The fixed rule: `fused` for few output channels, else `split`.
const FUSED_UP_TO: usize = 16;

fn choose(index: &Index<'_>, source: &Source<'_>, options: &Options, names: &mut Names) -> Choice {
    let decided = options.decided.get(&(source.scope, source.position));
    let interleave = decided
        .and_then(|d| d.as_ref()?.1)
        .or(options.interleave)
        .or_else(|| options.target.as_ref().and_then(Target::interleave));
    let max_channels = [options.max_channels, options.target.as_ref().and_then(|t| t.limits.channels)];
    let how = |form| BuildOptions {
        form,
        interleave,
        crop: options.crop,
        max_channels: max_channels.into_iter().flatten().min(),
    };
    let wanted = match decided {
        Some(None) => return Choice::Keep("kept: measured faster than every form".into()),
        Some(Some((form, _))) => Some((*form, "measured fastest".to_owned())),
        None => options.form.map(|form| (form, "asked for by --form".to_owned())),
    };
    let (form, reason) = match (wanted, &options.target) {
        (Some(wanted), _) => wanted,
        (None, Some(target)) => match rank(index, source, target, how, names) {
            Ok(best) => best,
            Err(keep) => return Choice::Keep(keep),
        },
        (None, None) if source.channels_out() <= FUSED_UP_TO => {
            (Form::Fused, format!("fixed rule: {} output channels, at most {FUSED_UP_TO}", source.channels_out()))
        }
        (None, None) => {
            (Form::Split, format!("fixed rule: {} output channels, over {FUSED_UP_TO}", source.channels_out()))
        }
    };
    let built = |form, reason: String, names: &mut Names| {
        build(index, source, how(form), names)
            .map(|built| Choice::Rewrite { form, built: Box::new(built), reason })
            .map_err(|why| (form, why))
    };
    let first = built(form, reason, names);
    let second = first.or_else(|(form, why)| {
        let other = if form == Form::Split { Form::Fused } else { Form::Split };
        if !form.is_exact() {
            return Err(why);
        }
        built(other, format!("{} is not possible ({why})", form.name()), names).map_err(|_| why)
    });
    second.unwrap_or_else(|why| Choice::Keep(format!("kept: {why}")))
}

/// The form that the target's estimate says is fastest, or why the node stays.
fn rank(
    index: &Index<'_>,
    source: &Source<'_>,
    target: &Target,
    how: impl Fn(Form) -> BuildOptions,
    names: &mut Names,
) -> Result<(Form, String), String> {
    let output = output_facts(source);
    let mut best: Option<(f64, Form)> = None;
    let mut objections = Vec::new();
    for form in [Form::Split, Form::RowSplit, Form::Fused] {
        match build(index, source, how(form), names) {
            Err(why) => objections.push(format!("{}: {why}", form.name())),
            Ok(built) => match target.objection(&built.work, built.interleave) {
                Some(why) => objections.push(format!("{}: {why}", form.name())),
                None => {
                    let cycles = target.cycles(&built.work, passes(&built), output);
                    if best.is_none_or(|(least, _)| cycles < least) {
                        best = Some((cycles, form));
                    }
                }
            },
        }
    }
    let native = target.native_cycles(output);
    match (best, native) {
        (Some((cycles, form)), Some(native)) if cycles >= native => Err(format!(
            "kept: target {} estimates {native:.0} cycles for it, {cycles:.0} for {}",
            target.name,
            form.name()
        )),
        (Some((cycles, form)), _) => {
            Ok((form, format!("target {} estimates {cycles:.0} cycles, the least", target.name)))
        }
        (None, _) => Err(format!("kept: no form fits target {}: {}", target.name, objections.join("; "))),
    }
}

/// Operators that move the whole output once.
fn passes(built: &Built) -> usize {
    let moving = ["Concat", "DepthToSpace", "Transpose", "Slice", "Split", "Pad"];
    let count = built.nodes.iter().filter(|n| moving.iter().any(|op| is_op(n, op))).count();
    // Slices of the parts and Concats of an axis move a share each; together at most a few whole passes.
    count.min(4)
}

/// Lengths are assumed where they are dynamic: only the ranking of forms hangs on them.
fn output_facts(source: &Source<'_>) -> Output {
    const ASSUMED_LENGTH: i64 = 64;
    let natural = |n: i64| u64::try_from(n).unwrap_or(0);
    let lengths: Vec<i64> = source.axes.iter().map(|a| a.n.unwrap_or(ASSUMED_LENGTH)).collect();
    // A file may declare any length: what does not fit stays at the largest number.
    let product = |factors: &mut dyn Iterator<Item = u64>| factors.fold(1, u64::saturating_mul);
    let outputs = product(&mut source.axes.iter().zip(&lengths).map(|(a, &n)| natural(a.output(n))));
    let inputs = product(&mut lengths.iter().map(|&n| natural(n)));
    let batch = source.batch.unwrap_or(1) as u64;
    let kernel = product(&mut source.kernel.iter().map(|&k| k as u64));
    let pairs = (source.channels_in_per_group() * source.channels_out()) as u64;
    Output {
        elements: batch.saturating_mul(outputs).saturating_mul(source.channels_out() as u64),
        macs: batch.saturating_mul(inputs).saturating_mul(kernel).saturating_mul(pairs),
        macs_zero_pad: batch.saturating_mul(outputs).saturating_mul(kernel).saturating_mul(pairs),
        scattered: batch.saturating_mul(inputs).saturating_mul(kernel).saturating_mul(source.channels_out() as u64),
        weights: source.weight.len() as u64,
        quantised: source.tail.is_some(),
    }
}

fn kept(name: String, place: (ScopeId, usize), outline: Outline, reason: String, warnings: Vec<String>) -> NodeReport {
    NodeReport {
        name,
        place,
        form: None,
        interleave: None,
        kernel: outline.kernel,
        strides: outline.strides,
        dilations: outline.dilations,
        group: outline.group,
        pads: outline.pads,
        output_padding: outline.output_padding,
        macs_before: outline.macs,
        macs_after: outline.macs,
        macs_zero_pad: outline.macs_zero_pad,
        params_before: outline.params,
        params_after: outline.params,
        reason,
        work: Vec::new(),
        warnings,
        segment: None,
    }
}

fn report(
    name: String,
    place: (ScopeId, usize),
    source: &Source<'_>,
    outline: Outline,
    form: Form,
    built: &Built,
    reason: String,
) -> NodeReport {
    let facts = output_facts(source);
    let known = source.lengths().is_some() && source.batch.is_some();
    let notes: BTreeSet<&String> = built.notes.iter().collect();
    let reason = notes.iter().fold(reason, |all, note| format!("{all}; {note}"));
    let naturals = |f: fn(&crate::axis::Axis) -> i64| -> Vec<usize> {
        source.axes.iter().map(|a| usize::try_from(f(a)).unwrap_or(0)).collect()
    };
    let mut warnings = source.warnings.clone();
    if !form.is_exact() {
        let how = if form == Form::Shi { ": its output is smaller and shifted" } else { ": its output is shifted" };
        warnings.push(format!("{} does not preserve the result{how}", form.name()));
    }
    NodeReport {
        name,
        place,
        form: Some(form),
        interleave: built.interleave,
        kernel: source.kernel.clone(),
        strides: naturals(|a| a.s),
        dilations: naturals(|a| a.d),
        group: source.group,
        pads: source.pads.clone(),
        output_padding: source.output_padding.clone(),
        macs_before: known.then_some(facts.macs).filter(|&n| n < u64::MAX),
        macs_after: built.work.iter().try_fold(0u64, |n, w| n.checked_add(w.macs()?)),
        macs_zero_pad: known.then_some(facts.macs_zero_pad).filter(|&n| n < u64::MAX),
        params_before: outline.params.max(source.weight.len() as u64),
        params_after: built.params,
        reason,
        work: built.work.clone(),
        warnings,
        segment: Some(Segment {
            scope: source.scope,
            input: match &source.input {
                Some(q) => q.node.input.first().cloned().unwrap_or_default(),
                None => source.x().to_owned(),
            },
            output: match &source.tail {
                Some(tail) => tail.quantize.1.output.first().cloned().unwrap_or_default(),
                None => source.node.output.first().cloned().unwrap_or_default(),
            },
            conv_transpose: source.node.output.first().cloned().unwrap_or_default(),
        }),
    }
}

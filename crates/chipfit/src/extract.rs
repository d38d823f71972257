//! One rewritable node with its neighbourhood, as a model of its own.
//!
//! Walks back from one value to another through whatever lies between (quantisation, activations, the
//! ConvTranspose itself) and copies it. Constants come along as the file has them, external data included; the
//! start value becomes the model's only input, so that every form of the node can be measured alone.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, anyhow, bail};
use chipfit_deconv::Segment;
use chipfit_model::build::{self, DimSpec};
use chipfit_model::proto::{GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};
use chipfit_model::{DataType, Index, Model, Producer, Shapes};

/// Most nodes of a neighbourhood: between a quantised tensor and the next lie a handful.
const MAX_NODES: usize = 64;

/// The part of the model from `segment.input` to `segment.output` as a model with fixed shapes.
pub(crate) fn neighbourhood(index: &Index<'_>, shapes: &Shapes, segment: &Segment) -> Result<Model> {
    let input = shapes.resolve(index, segment.scope, &segment.input);
    let dims = input.known_dims().with_context(|| {
        format!("the shape of '{}' is not known; give the model's inputs theirs with --input", segment.input)
    })?;
    let dims: Vec<DimSpec> =
        dims.iter().map(|&d| i64::try_from(d).map(DimSpec::Known)).collect::<Result<_, _>>().context("shape")?;
    let dtype = input.dtype.with_context(|| format!("the element type of '{}' is not known", segment.input))?;
    let output_dtype = shapes.resolve(index, segment.scope, &segment.output).dtype.unwrap_or(DataType::Float);
    let mut walk = Walk { index, stop: &segment.input, nodes: BTreeMap::new(), tensors: BTreeMap::new() };
    walk.collect(segment)?;
    let graph = GraphProto {
        name: Some("neighbourhood".to_owned()),
        node: walk.in_order(),
        initializer: walk.tensors.into_values().collect(),
        input: vec![build::value_info(&segment.input, dtype, &dims)],
        output: vec![untyped_shape(build::value_info(&segment.output, output_dtype, &[]))],
        ..GraphProto::default()
    };
    let source = &index.model.proto;
    let scope = index.scopes.get(segment.scope).context("a scope that the model does not have")?;
    let function = scope.path.function.and_then(|f| source.functions.get(f));
    let proto = ModelProto {
        // From version 4 on, constants need no declaration as inputs.
        ir_version: Some(source.ir_version.unwrap_or(0).max(4)),
        opset_import: function.map_or(&source.opset_import, |f| &f.opset_import).clone(),
        graph: graph.into(),
        ..ModelProto::default()
    };
    Ok(Model { proto, folder: index.model.folder.clone() })
}

/// Takes the (empty) shape out of a value info: the runtime infers it.
fn untyped_shape(mut info: ValueInfoProto) -> ValueInfoProto {
    use chipfit_model::proto::__buffa::oneof::type_proto::Value;
    if let Some(Value::TensorType(tensor)) = info.r#type.as_option_mut().and_then(|t| t.value.as_mut()) {
        tensor.shape = Default::default();
    }
    info
}

struct Walk<'a, 'm> {
    index: &'a Index<'m>,
    stop: &'a str,
    /// By scope and position.
    nodes: BTreeMap<(usize, usize), &'m NodeProto>,
    tensors: BTreeMap<String, TensorProto>,
}

impl<'m> Walk<'_, 'm> {
    fn collect(&mut self, segment: &Segment) -> Result<()> {
        let mut waiting = vec![(segment.scope, segment.output.clone())];
        let mut seen: BTreeSet<(usize, String)> = BTreeSet::new();
        while let Some((scope, name)) = waiting.pop() {
            if name.is_empty() || name == self.stop || !seen.insert((scope, name.clone())) {
                continue;
            }
            let (home, producer) =
                self.index.lookup(scope, &name).ok_or_else(|| anyhow!("'{name}' is produced by nothing"))?;
            match producer {
                Producer::Initializer(at) => {
                    let tensor = self.index.scopes.get(home).and_then(|s| s.initializers().get(at));
                    self.tensors.insert(name, tensor.context("a missing initializer")?.clone());
                }
                Producer::Node { node, .. } => {
                    let found =
                        self.index.scopes.get(home).and_then(|s| s.nodes.get(node)).context("a missing node")?;
                    let has_body = found.attribute.iter().any(|a| a.g.is_set() || !a.graphs.is_empty());
                    if has_body || self.nodes.len() >= MAX_NODES {
                        bail!("'{name}' depends on more of the model than a neighbourhood");
                    }
                    self.nodes.insert((home, node), found);
                    waiting.extend(found.input.iter().map(|i| (home, i.clone())));
                }
                Producer::Input(_) | Producer::SparseInitializer(_) => {
                    bail!("'{name}' is no constant and not what the node starts from")
                }
            }
        }
        Ok(())
    }

    /// The nodes, each after those it reads. Outer scopes come first, and a scope's nodes in the order of the file,
    /// which a valid file keeps topological; where it does not, they are sorted.
    fn in_order(&self) -> Vec<NodeProto> {
        let mut left: Vec<&NodeProto> = self.nodes.values().copied().collect();
        let mut order: Vec<NodeProto> = Vec::with_capacity(left.len());
        while !left.is_empty() {
            let made_later: BTreeSet<&str> = left.iter().flat_map(|n| &n.output).map(String::as_str).collect();
            let is_ready = |n: &&NodeProto| n.input.iter().all(|i| i == self.stop || !made_later.contains(i.as_str()));
            // Without a ready node there is a cycle, which no checked model has; the rest is then appended as it is.
            let next = left.iter().position(is_ready).unwrap_or(0);
            order.push(left.remove(next).clone());
        }
        order
    }
}

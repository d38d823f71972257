//! The part of a graph between given values and one result: which nodes, in which order, on which constants.

use std::collections::{HashMap, HashSet};

use chipfit_model::index::node_label;
use chipfit_model::proto::NodeProto;
use chipfit_model::{Index, Producer, ScopeId};

use super::EvalError;

/// A value of the model: the scope that makes it, and its name.
pub(super) type Key<'m> = (ScopeId, &'m str);

/// One node of a segment.
#[derive(Clone, Debug)]
pub struct Step<'m> {
    /// The scope it lies in.
    pub scope: ScopeId,
    /// Its position there.
    pub position: usize,
    /// The node.
    pub node: &'m NodeProto,
    /// The version of the default operator set.
    pub opset: i64,
    /// What it reads; `None`: left out.
    pub(super) reads: Vec<Option<Key<'m>>>,
    /// Whether all that it reads is constant.
    pub constant: bool,
}

impl Step<'_> {
    /// How messages call the node.
    pub fn label(&self) -> String {
        node_label(self.node, self.position)
    }
}

/// The nodes between `inputs` and `output`, each after what it reads.
#[derive(Clone, Debug)]
pub struct Segment<'m> {
    /// The nodes.
    pub steps: Vec<Step<'m>>,
    /// Constants that they read.
    pub(super) constants: Vec<Key<'m>>,
    pub(super) inputs: Vec<Key<'m>>,
    pub(super) output: Key<'m>,
}

fn resolve<'m>(index: &Index<'m>, scope: ScopeId, name: &'m str) -> Result<(Key<'m>, Producer), EvalError> {
    let (home, producer) = index.lookup(scope, name).ok_or_else(|| EvalError::NoSuchValue(name.to_owned()))?;
    Ok(((home, name), producer))
}

impl<'m> Segment<'m> {
    /// Walks back from `output`, as `scope` sees it, to `inputs` and constants.
    ///
    /// # Errors
    /// [`EvalError::NoSuchValue`], and [`EvalError::NotConstant`] for a value on the way that is neither.
    pub fn collect(index: &Index<'m>, scope: ScopeId, inputs: &[&'m str], output: &'m str) -> Result<Self, EvalError> {
        if scope >= index.scopes.len() {
            return Err(EvalError::NoSuchValue(output.to_owned()));
        }
        let output = resolve(index, scope, output)?.0;
        let inputs: Vec<Key<'m>> =
            inputs.iter().map(|name| Ok(resolve(index, scope, name)?.0)).collect::<Result<_, EvalError>>()?;
        let mut segment = Self { steps: Vec::new(), constants: Vec::new(), inputs, output };
        // Values whose maker is in the segment, with whether they are constant.
        let mut done: HashMap<Key<'m>, bool> = segment.inputs.iter().map(|&k| (k, false)).collect();
        let mut opened: HashSet<Key<'m>> = HashSet::new();
        let mut waiting = vec![output];
        while let Some(&key) = waiting.last() {
            if done.contains_key(&key) {
                waiting.pop();
                continue;
            }
            let (_, producer) = resolve(index, key.0, key.1)?;
            let position = match producer {
                Producer::Initializer(_) => None,
                Producer::Node { .. } if index.constant(key.0, key.1).is_some() => None,
                Producer::Node { node, .. } => Some(node),
                Producer::Input(_) | Producer::SparseInitializer(_) => {
                    return Err(EvalError::NotConstant { name: key.1.to_owned() });
                }
            };
            let Some(position) = position else {
                segment.constants.push(key);
                done.insert(key, true);
                continue;
            };
            let s = &index.scopes[key.0];
            let node = &s.nodes[position];
            let mut reads = Vec::with_capacity(node.input.len());
            for name in &node.input {
                reads.push(if name.is_empty() { None } else { Some(resolve(index, key.0, name)?.0) });
            }
            let missing: Vec<_> = reads.iter().flatten().filter(|k| !done.contains_key(*k)).copied().collect();
            if !missing.is_empty() {
                if !opened.insert(key) {
                    return Err(EvalError::Cycle { node: node_label(node, position) });
                }
                waiting.extend(missing);
                continue;
            }
            let constant = reads.iter().flatten().all(|k| done.get(k) == Some(&true)) && !reads.is_empty();
            for name in node.output.iter().filter(|n| !n.is_empty()) {
                done.insert((key.0, name), constant);
            }
            segment.steps.push(Step { scope: key.0, position, node, opset: s.opset, reads, constant });
        }
        Ok(segment)
    }
}

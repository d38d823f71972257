//! Prints what shape inference says of models, one JSON document a line; the oracle test reads it.
//!
//! Each line of standard input is a request: the path of a model, then, separated by tabs, overrides of inputs
//! (`name:1x3x224x224`). Each line of standard output answers one request, in order:
//! `{"opset": 17, "nodes": {"Conv": 3}, "values": {"y": ["float", [1, "H", null]]}}`, where an unknown length is
//! `null`, an unknown shape is `null` in place of the list; or `{"error": "why"}`.

use std::collections::BTreeMap;
use std::io::{BufRead as _, Write as _};
use std::path::Path;

use chipfit_model::shape::infer;
use chipfit_model::{Dim, Index, Limits, Model};
use serde_json::{Value, json};

fn main() -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let answer = answer(&line?).unwrap_or_else(|error| json!({ "error": error }));
        writeln!(out, "{answer}")?;
    }
    Ok(())
}

fn answer(request: &str) -> Result<Value, String> {
    let mut parts = request.split('\t');
    let path = parts.next().unwrap_or_default();
    let inputs: BTreeMap<String, Vec<usize>> = parts.map(parse_override).collect::<Result<_, _>>()?;
    let model = Model::open(Path::new(path), &Limits::default()).map_err(|e| e.to_string())?;
    let index = Index::new(&model);
    let shapes = infer(&index, &inputs).map_err(|e| e.to_string())?;
    let main = &index.scopes[0];
    let mut values = serde_json::Map::new();
    let made = main.nodes.iter().flat_map(|n| &n.output).map(String::as_str);
    for name in made.chain(main.inputs.iter().copied()).filter(|n| !n.is_empty()) {
        let t = shapes.get(0, name);
        let dims = t.dims.map(|dims| dims.iter().map(dim).collect::<Vec<_>>());
        values.insert(name.to_owned(), json!([t.dtype.map(|d| d.name()), dims]));
    }
    let mut nodes: BTreeMap<&str, usize> = BTreeMap::new();
    for node in main.nodes {
        *nodes.entry(node.op_type.as_deref().unwrap_or_default()).or_default() += 1;
    }
    Ok(json!({ "opset": main.opset, "nodes": nodes, "values": values }))
}

fn dim(dim: &Dim) -> Value {
    match dim {
        Dim::Known(n) => json!(n),
        Dim::Named(name) => json!(name),
        Dim::Unknown => Value::Null,
    }
}

fn parse_override(text: &str) -> Result<(String, Vec<usize>), String> {
    let bad = || format!("'{text}' is not NAME:1x2x3");
    let (name, dims) = text.rsplit_once(':').ok_or_else(bad)?;
    let dims = dims.split('x').filter(|d| !d.is_empty()).map(|d| d.parse().map_err(|_| bad()));
    Ok((name.to_owned(), dims.collect::<Result<_, _>>()?))
}

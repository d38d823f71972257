//! What both engines share: panics become errors, inputs are checked by name.

use super::*;

#[test]
fn a_panic_becomes_an_error() {
    let error = guarded::<()>("some engine", "run the model", || panic!("index {} out of bounds", 7)).unwrap_err();
    assert_eq!(error.to_string(), "some engine panicked while it was to run the model: index 7 out of bounds");
    let error = guarded::<()>("e", "s", || std::panic::panic_any(1u8)).unwrap_err();
    assert!(error.is_engine_limit() && error.to_string().ends_with(": no message"));
    assert_eq!(guarded("e", "s", || Ok(3)).unwrap(), 3);
}

#[test]
fn errors_say_what_is_missing() {
    let operator = |node: Option<&str>| EngineError::MissingOperator {
        engine: "rten".to_owned(),
        operator: "LRN".to_owned(),
        node: node.map(str::to_owned),
    };
    assert_eq!(operator(None).to_string(), "rten lacks the operator LRN");
    assert_eq!(operator(Some("n1")).to_string(), "rten lacks the operator LRN (node 'n1')");
    assert!(operator(None).is_engine_limit());
}

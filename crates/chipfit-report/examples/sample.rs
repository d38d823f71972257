//! Writes the tests' sample report: `cargo run -p chipfit-report --example sample > report.html`.

#[path = "../tests/sample/mod.rs"]
mod sample;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    print!("{}", sample::report().to_html()?);
    Ok(())
}

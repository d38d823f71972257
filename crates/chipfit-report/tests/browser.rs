//! The page in a real browser: it is understood, its pictures are there, hostile names stay text, and nothing is asked of
//! the network. Needs Chromium (`CHIPFIT_CHROMIUM`, or `chromium` in the path); says so when it is skipped.

mod sample;

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use chipfit_report::{Block, Report};

fn chromium() -> Option<PathBuf> {
    let named = std::env::var_os("CHIPFIT_CHROMIUM").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = || {
        let names = ["chromium", "chromium-browser", "google-chrome"];
        std::env::split_paths(&path)
            .flat_map(|folder| names.map(|name| folder.join(name)))
            .find(|program| program.is_file())
    };
    let found = named.or_else(in_path).filter(|program| program.is_file());
    if found.is_none() {
        eprintln!("SKIPPED: the report in a browser (needs Chromium: CHIPFIT_CHROMIUM, or chromium in the path)");
    }
    found
}

/// Longest time that the browser may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The document after the browser has read the page; the browser is stopped when it takes too long.
fn document(chromium: &Path, folder: &Path, page: &str) -> String {
    let file = folder.join("report.html");
    fs::write(&file, page).unwrap();
    let dump = folder.join("document");
    let errors = folder.join("errors");
    let mut browser = Command::new(chromium)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync", "--dump-dom"])
        .arg(format!("--user-data-dir={}", folder.join("profile").display()))
        .arg(format!("file://{}", file.display()))
        .stdin(Stdio::null())
        .stdout(File::create(&dump).unwrap())
        .stderr(File::create(&errors).unwrap())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while browser.try_wait().unwrap().is_none() {
        if started.elapsed() > PATIENCE {
            browser.kill().unwrap();
            browser.wait().unwrap();
            panic!("the browser took more than {PATIENCE:?}: {}", fs::read_to_string(errors).unwrap());
        }
        thread::sleep(Duration::from_millis(20));
    }
    fs::read_to_string(dump).unwrap()
}

/// A server that answers nothing but counts who asks.
struct Server {
    address: String,
    asked: Arc<AtomicUsize>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/", listener.local_addr().unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        // Ends with the process; a connection is closed at once.
        thread::spawn(move || {
            for _connection in listener.incoming() {
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        Self { address, asked }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

#[test]
fn pictures_are_there_and_nothing_is_asked_from_outside() {
    let Some(chromium) = chromium() else { return };
    let folder = tempfile::tempdir().unwrap();
    let found = document(&chromium, folder.path(), &sample::report().to_html().unwrap());
    assert_eq!(found.matches("<svg viewBox").count(), found.matches("</svg>").count() - 1, "all but the hatching");
    assert_eq!(found.matches("role=\"img\"").count(), 7);
    for part in ["<polyline class=\"line\"", "<rect class=\"q8\"", "<rect class=\"share neutral\"", "class=\"whisker\""]
    {
        assert!(found.contains(part), "{part}");
    }
    assert!(found.contains("mul + acc\n1e-6: "), "tooltips");
    for attribute in ["src", "href"] {
        for target in found.split(&format!(" {attribute}=\"")).skip(1) {
            assert!(target.starts_with("#s"), "{attribute}=\"{}", target.chars().take(80).collect::<String>());
        }
    }
    assert!(!found.contains("<script"));
}

/// Puts a text into every place of a report that takes one.
fn everywhere(report: &Report, text: &str) -> Report {
    fn replace(value: &mut serde_json::Value, text: &str) {
        match value {
            serde_json::Value::Array(items) => items.iter_mut().for_each(|item| replace(item, text)),
            serde_json::Value::Object(fields) => {
                for (name, field) in fields {
                    let is_choice = ["kind", "x_scale", "y_unit", "unit", "scale", "tone"].contains(&name.as_str());
                    if !is_choice {
                        replace(field, text);
                    }
                }
            }
            serde_json::Value::String(old) => text.clone_into(old),
            _ => {}
        }
    }
    let mut value = serde_json::to_value(report).unwrap();
    replace(&mut value, text);
    serde_json::from_value(value).unwrap()
}

#[test]
fn hostile_names_stay_text() {
    let Some(chromium) = chromium() else { return };
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start();
    let address = &server.address;
    let payload = format!(
        "\"'></title></style></text></svg><img src=\"{address}a\"><script>fetch('{address}b')</script>\
         <style>@import url({address}c);</style><a href=\"{address}d\">x</a>&lt;img src={address}e&gt;"
    );
    let report = everywhere(&sample::report(), &payload);
    assert!(matches!(&report.sections[0].blocks[0], Block::Text { text } if *text == payload));
    let found = document(&chromium, folder.path(), &report.to_html().unwrap());
    assert!(!found.contains("<script") && !found.contains("<img") && !found.contains("<a href=\"http"));
    assert_eq!(found.matches("role=\"img\"").count(), 7);
    assert_eq!(server.asked(), 0, "the page must not open a connection");

    // Were the text not escaped, and were there no policy, the browser would connect: the check above can fail.
    let _ = document(&chromium, folder.path(), &format!("<!DOCTYPE html><title>x</title>{payload}"));
    assert_ne!(server.asked(), 0, "the control page connects");
}

#[test]
fn policy_holds_where_escaping_would_fail() {
    let Some(chromium) = chromium() else { return };
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start();
    let address = &server.address;
    let page = sample::report().to_html().unwrap();
    let inserted = format!("<img src=\"{address}\"><script>fetch('{address}');document.title='owned'</script><main>");
    let damaged = page.replacen("<main>", &inserted, 1);
    assert_ne!(damaged, page);
    let found = document(&chromium, folder.path(), &damaged);
    assert!(!found.contains("<title>owned"));
    assert_eq!(server.asked(), 0, "the policy must forbid the request");
}

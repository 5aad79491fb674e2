//! A module of two megabytes, as programs are that use a few libraries. What it does by default is
//! little, so that what is measured is its start.

use std::io::Read;

use minijinja::{Environment, context};
use serde_json::Value;

fn main() {
    let mut args = std::env::args().skip(1);
    let work = args.next().unwrap_or_default();
    let mut input = String::new();
    if let "match" | "template" = work.as_str() {
        std::io::stdin().read_to_string(&mut input).expect("text on standard input");
    }
    match work.as_str() {
        "" => {
            let greeting: Value = serde_json::from_str(r#"{ "to": "Wasm" }"#).expect("JSON");
            println!("Hello from {}!", greeting["to"].as_str().unwrap_or_default());
        }
        "sleep" => {
            println!("ready");
            std::thread::sleep(std::time::Duration::from_secs(1_000_000));
        }
        "match" => {
            let pattern = regex::Regex::new(&args.next().unwrap_or_default()).expect("a pattern");
            pattern.find_iter(&input).for_each(|found| println!("{}", found.as_str()));
        }
        "template" => {
            let values: Vec<String> = args.collect();
            let page = Environment::new().render_str(&input, context!(values));
            println!("{}", page.expect("a template"));
        }
        _ => panic!("unknown work `{work}`"),
    }
}

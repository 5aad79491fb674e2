fn main() {
    println!("Hello from Wasm!");
}

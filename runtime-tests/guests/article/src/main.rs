use std::io::Write;
use std::net::TcpListener;

fn main() {
    let listener = TcpListener::bind("0.0.0.0:8080").expect("Failed to bind");
    for stream in listener.incoming() {
        match stream {
            Ok(mut stream) => {
                let response = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nHello from Wasm!";
                stream.write_all(response.as_bytes()).ok();
            }
            Err(e) => eprintln!("Error: {}", e),
        }
    }
}

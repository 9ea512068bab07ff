//! Peer of the interop tests, built on the crate ttrpc: `rust-peer server SOCKET` or `rust-peer client SOCKET CASE...`.

mod cases;
mod client;
mod server;

mod generated {
    include!(concat!(env!("OUT_DIR"), "/modules.rs"));
}

/// The bytes that payloads are filled with.
fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|i| (i % 251) as u8).collect()
}

/// Gives nothing to the first of several parts, and what is left over to the last.
fn divide(sum: i64, count: i64) -> Vec<i64> {
    match count {
        0 => vec![],
        1 => vec![sum],
        _ => {
            let share = sum / (count - 1);
            let mut parts = vec![share; count as usize];
            parts[0] = 0;
            parts[count as usize - 1] += sum % (count - 1);
            parts
        }
    }
}

// One thread: the crate's server starts a task for each frame, and on several threads the end of a stream may overtake
// its last message (ttrpc-rust#311).
#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["server", socket] => server::serve(socket).await,
        ["client", socket, names @ ..] => {
            for name in names {
                println!("{}", client::attempt(socket, name).await);
            }
        }
        _ => {
            eprintln!("usage: rust-peer server SOCKET | client SOCKET CASE...");
            std::process::exit(2);
        }
    }
}

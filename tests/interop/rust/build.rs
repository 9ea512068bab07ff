//! Generates messages and service from the test suite's .proto file, without protoc.

use std::path::Path;

use ttrpc_codegen::{Codegen, Customize};

fn main() {
    let protos = "../../protos";
    println!("cargo:rerun-if-changed={protos}/conformance.proto");
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    Codegen::new()
        .out_dir(&out)
        .input(format!("{protos}/conformance.proto"))
        .include(protos)
        .rust_protobuf()
        .customize(Customize { async_all: true, ..Default::default() })
        .run()
        .expect("conformance.proto compiles");
    // Not the generator's own mod.rs: it begins with an inner attribute, which include! refuses.
    let modules = "pub mod conformance;\npub mod conformance_ttrpc;\n";
    std::fs::write(Path::new(&out).join("modules.rs"), modules).expect("cargo made OUT_DIR");
}

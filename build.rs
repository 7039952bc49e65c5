//! Compiles the protocol definitions in `proto/` with protox, which replaces `protoc`, and links static binaries.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let protos = ["proto/csi/v1/csi.proto", "proto/pluginregistration/v1/api.proto"];
    let descriptors = protox::compile(protos, ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    pack_relocations_of_static_binaries();
    Ok(())
}

/// The startup code of a static binary reads all its relocations, which stay in memory. Packed ones are a hundredth of the
/// size: DT_RELR, which musl knows since 1.2.4 and GNU ld since 2.38.
fn pack_relocations_of_static_binaries() {
    if std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|env| env == "musl") {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

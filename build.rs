//! Compiles the C shim of the verbs transport. Does nothing without the feature `verbs`.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "verbs")]
    {
        println!("cargo:rerun-if-changed=ffi/verbs.c");
        cc::Build::new().file("ffi/verbs.c").std("c11").warnings_into_errors(true).compile("windlass_verbs");
    }
}

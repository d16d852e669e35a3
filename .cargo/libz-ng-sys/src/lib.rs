//! A stand-in for `libz-ng-sys`: the part of zlib's interface that flate2 calls, served by zlib-rs (pure Rust).
//!
//! Why: pingora-core asks for flate2 with the feature `zlib-ng`, which builds a C library and so needs cmake.
//! With this crate in its place, Wardgate builds with Rust and a C compiler only.
//!
//! When it can go: as soon as pingora-core lets its user choose flate2's backend (`zlib-rs` or `rust_backend`).
//! Then delete this folder and the `[patch.crates-io]` lines in the top `Cargo.toml`.
//!
//! A plain re-export of `libz-rs-sys` does not compile: there `zalloc` and `zfree` are `Option`s, in
//! `libz-ng-sys`, and so in flate2, they are bare function pointers. Hence a `z_stream` of our own with the
//! same layout, which the assertions below prove, and functions that hand it on. If a later flate2 calls more
//! of zlib than is here, the build says so by name.
#![allow(non_camel_case_types, non_snake_case, reason = "zlib's own names")]
#![allow(clippy::missing_safety_doc, clippy::too_many_arguments, reason = "zlib's own contracts")]

use std::ffi::{c_char, c_int, c_void};
use std::mem::{align_of, offset_of, size_of};

use libz_rs_sys as zlib;

pub use zlib::{
    Bytef, Z_BEST_COMPRESSION, Z_BEST_SPEED, Z_BLOCK, Z_BUF_ERROR, Z_DATA_ERROR, Z_DEFAULT_COMPRESSION,
    Z_DEFAULT_STRATEGY, Z_DEFLATED, Z_ERRNO, Z_FINISH, Z_FULL_FLUSH, Z_MEM_ERROR, Z_NEED_DICT, Z_NO_COMPRESSION,
    Z_NO_FLUSH, Z_OK, Z_PARTIAL_FLUSH, Z_STREAM_END, Z_STREAM_ERROR, Z_SYNC_FLUSH, Z_VERSION_ERROR, alloc_func,
    free_func, internal_state, uInt, uLong, voidpf, zlibVersion,
};

/// zlib's stream, as `libz-ng-sys` spells it: both allocator functions always present.
#[repr(C)]
#[derive(Copy, Clone)]
pub struct z_stream {
    pub next_in: *mut Bytef,
    pub avail_in: uInt,
    pub total_in: uLong,
    pub next_out: *mut Bytef,
    pub avail_out: uInt,
    pub total_out: uLong,
    pub msg: *mut c_char,
    pub state: *mut internal_state,
    pub zalloc: alloc_func,
    pub zfree: free_func,
    pub opaque: *mut c_void,
    pub data_type: c_int,
    pub adler: uLong,
    pub reserved: uLong,
}

pub type z_streamp = *mut z_stream;

/// The build fails unless both streams have the same size, alignment and place for each field.
macro_rules! same_layout {
    ($($field:ident)*) => {
        const _: () = {
            assert!(size_of::<z_stream>() == size_of::<zlib::z_stream>());
            assert!(align_of::<z_stream>() == align_of::<zlib::z_stream>());
            $(assert!(offset_of!(z_stream, $field) == offset_of!(zlib::z_stream, $field));)*
        };
    };
}

same_layout! {
    next_in avail_in total_in next_out avail_out total_out msg state zalloc zfree opaque data_type adler reserved
}

/// Each function passes its stream on to the one of the same name in zlib-rs.
///
/// SAFETY, for every cast: the layouts are equal (above), and a bare function pointer is a valid value of the
/// `Option` of it. The rest of zlib's contract (a live stream, buffers as long as said) is the caller's. zlib-rs
/// never clears `zalloc` and `zfree` once they are set, so our stream stays valid too.
macro_rules! hand_on {
    ($(fn $name:ident($($arg:ident: $type:ty),*);)*) => {
        $(
            pub unsafe fn $name(stream: z_streamp $(, $arg: $type)*) -> c_int {
                unsafe { zlib::$name(stream.cast() $(, $arg)*) }
            }
        )*
    };
}

hand_on! {
    fn deflate(flush: c_int);
    fn deflateEnd();
    fn deflateInit2_(
        level: c_int, method: c_int, windowBits: c_int, memLevel: c_int, strategy: c_int,
        version: *const c_char, stream_size: c_int
    );
    fn deflateParams(level: c_int, strategy: c_int);
    fn deflateReset();
    fn deflateSetDictionary(dictionary: *const Bytef, dictLength: uInt);
    fn inflate(flush: c_int);
    fn inflateEnd();
    fn inflateInit2_(windowBits: c_int, version: *const c_char, stream_size: c_int);
    fn inflateReset2(windowBits: c_int);
    fn inflateSetDictionary(dictionary: *const Bytef, dictLength: uInt);
}

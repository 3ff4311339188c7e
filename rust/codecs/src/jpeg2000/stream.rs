//! OpenJPEG's streams over memory.

use std::ffi::c_void;

use openjpeg_sys as opj;

/// What OpenJPEG reads from and writes to.
pub(super) struct Source<'f> {
    pub(super) bytes: &'f [u8],
    pub(super) at: usize,
}

/// OpenJPEG's mark for "nothing more" in a read function.
const END: opj::OPJ_SIZE_T = opj::OPJ_SIZE_T::MAX;

pub(super) unsafe extern "C" fn read(
    buffer: *mut c_void,
    count: opj::OPJ_SIZE_T,
    user: *mut c_void,
) -> opj::OPJ_SIZE_T {
    // SAFETY: `user` is the `Source` that `decode_image` gave, alive for the whole decoding.
    let source = unsafe { &mut *user.cast::<Source>() };
    let rest = &source.bytes[source.at.min(source.bytes.len())..];
    if rest.is_empty() {
        return END;
    }
    let count = rest.len().min(count);
    // SAFETY: OpenJPEG gives room for the count it asks for, and `rest` has at least that much.
    unsafe { std::ptr::copy_nonoverlapping(rest.as_ptr(), buffer.cast::<u8>(), count) };
    source.at += count;
    count
}

pub(super) unsafe extern "C" fn skip(count: opj::OPJ_OFF_T, user: *mut c_void) -> opj::OPJ_OFF_T {
    // SAFETY: as in `read`.
    let source = unsafe { &mut *user.cast::<Source>() };
    let left = source.bytes.len().saturating_sub(source.at);
    let count = usize::try_from(count).unwrap_or(0).min(left);
    source.at += count;
    i64::try_from(count).unwrap_or(0)
}

pub(super) unsafe extern "C" fn seek(at: opj::OPJ_OFF_T, user: *mut c_void) -> opj::OPJ_BOOL {
    // SAFETY: as in `read`.
    let source = unsafe { &mut *user.cast::<Source>() };
    match usize::try_from(at) {
        Ok(at) if at <= source.bytes.len() => {
            source.at = at;
            1
        }
        _ => 0,
    }
}

/// What is written, and where the next byte goes.
pub(super) struct Target<'o> {
    pub(super) bytes: &'o mut Vec<u8>,
    pub(super) at: usize,
}

impl Target<'_> {
    fn make_room(&mut self, end: usize) {
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
    }
}

pub(super) unsafe extern "C" fn write(
    buffer: *mut c_void,
    count: opj::OPJ_SIZE_T,
    user: *mut c_void,
) -> opj::OPJ_SIZE_T {
    // SAFETY: `user` is the `Target` that `encode_image` gave, alive for the whole encoding.
    let target = unsafe { &mut *user.cast::<Target>() };
    // SAFETY: OpenJPEG gives that many bytes.
    let bytes = unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), count) };
    let end = target.at + count;
    target.make_room(end);
    target.bytes[target.at..end].copy_from_slice(bytes);
    target.at = end;
    count
}

pub(super) unsafe extern "C" fn write_skip(count: opj::OPJ_OFF_T, user: *mut c_void) -> opj::OPJ_OFF_T {
    // SAFETY: as in `write`.
    let target = unsafe { &mut *user.cast::<Target>() };
    target.at += usize::try_from(count).unwrap_or(0);
    target.make_room(target.at);
    count
}

pub(super) unsafe extern "C" fn write_seek(at: opj::OPJ_OFF_T, user: *mut c_void) -> opj::OPJ_BOOL {
    // SAFETY: as in `write`.
    let target = unsafe { &mut *user.cast::<Target>() };
    target.at = usize::try_from(at).unwrap_or(0);
    target.make_room(target.at);
    1
}

/// A stream of OpenJPEG.
pub(super) struct Stream(pub(super) *mut opj::opj_stream_t);

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: nobody else has it.
        unsafe { opj::opj_stream_destroy(self.0) }
    }
}

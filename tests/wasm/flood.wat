;; Writes 10 MiB to standard output: the numbers 0, 1, 2 … as 32-bit little-endian words.
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (memory (export "memory") 2)
  (func (export "_start")
    (local $word i32) (local $at i32) (local $errno i32)
    (loop $block
      (local.set $at (i32.const 65536))
      (loop $fill
        (i32.store (local.get $at) (local.get $word))
        (local.set $word (i32.add (local.get $word) (i32.const 1)))
        (local.set $at (i32.add (local.get $at) (i32.const 4)))
        (br_if $fill (i32.lt_u (local.get $at) (i32.const 131072))))
      (local.set $at (i32.const 65536))
      (loop $write ;; a write may be partial
        (i32.store (i32.const 0) (local.get $at))
        (i32.store (i32.const 4) (i32.sub (i32.const 131072) (local.get $at)))
        (local.set $errno (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
        (if (local.get $errno) (then (call $proc_exit (local.get $errno))))
        (local.set $at (i32.add (local.get $at) (i32.load (i32.const 8))))
        (br_if $write (i32.lt_u (local.get $at) (i32.const 131072))))
      (br_if $block (i32.lt_u (local.get $word) (i32.const 2621440))))))

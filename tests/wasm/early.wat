;; Writes "early\n" from its start section, which runs when the module is instantiated, then "late\n" from _start.
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 64) "early\nlate\n")
  (func $print (param $at i32) (param $length i32)
    (i32.store (i32.const 0) (local.get $at))
    (i32.store (i32.const 4) (local.get $length))
    (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
  (func $begin (call $print (i32.const 64) (i32.const 6)))
  (start $begin)
  (func (export "_start") (call $print (i32.const 70) (i32.const 5))))

;; list FD PATH: writes the names in the directory PATH, relative to the open directory FD (one digit), one a line.
;; Exits with the WASI error number of what fails. For directories whose entries fit into 32 KiB.
(module
  (import "wasi_snapshot_preview1" "args_get" (func $args_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_readdir" (func $fd_readdir (param i32 i32 i32 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 64) "\n")
  (func $require (param $errno i32)
    (if (local.get $errno) (then (call $proc_exit (local.get $errno)))))
  (func $length (param $at i32) (result i32)
    (local $end i32)
    (local.set $end (local.get $at))
    (block $done
      (loop $next
        (br_if $done (i32.eqz (i32.load8_u (local.get $end))))
        (local.set $end (i32.add (local.get $end) (i32.const 1)))
        (br $next)))
    (i32.sub (local.get $end) (local.get $at)))
  (func $print (param $at i32) (param $length i32)
    (i32.store (i32.const 0) (local.get $at))
    (i32.store (i32.const 4) (local.get $length))
    (call $require (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
  (func (export "_start")
    (local $path i32) (local $at i32) (local $end i32)
    (call $require (call $args_get (i32.const 1024) (i32.const 2048)))
    (local.set $path (i32.load (i32.const 1032)))
    (call $require
      (call $path_open
        (i32.sub (i32.load8_u (i32.load (i32.const 1028))) (i32.const 48))
        (i32.const 1)
        (local.get $path) (call $length (local.get $path))
        (i32.const 2) ;; a directory
        (i64.const 16384) ;; right to list
        (i64.const 0)
        (i32.const 0)
        (i32.const 16)))
    (call $require (call $fd_readdir (i32.load (i32.const 16)) (i32.const 8192) (i32.const 32768) (i64.const 0) (i32.const 20)))
    (local.set $at (i32.const 8192))
    (local.set $end (i32.add (i32.const 8192) (i32.load (i32.const 20))))
    (block $done
      (loop $next ;; an entry: cursor (8), inode (8), length of the name (4), type (4), the name
        (br_if $done (i32.ge_u (local.get $at) (local.get $end)))
        (call $print (i32.add (local.get $at) (i32.const 24)) (i32.load (i32.add (local.get $at) (i32.const 16))))
        (call $print (i32.const 64) (i32.const 1))
        (local.set $at (i32.add (i32.add (local.get $at) (i32.const 24))
                                (i32.load (i32.add (local.get $at) (i32.const 16)))))
        (br $next)))))

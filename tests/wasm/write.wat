;; write FD PATH: writes "written\n" to the file PATH, relative to the open directory FD (one digit), making it if needed.
;; Exits with the WASI error number of what fails.
(module
  (import "wasi_snapshot_preview1" "args_get" (func $args_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 64) "written\n")
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
  (func (export "_start")
    (local $path i32)
    (call $require (call $args_get (i32.const 1024) (i32.const 2048)))
    (local.set $path (i32.load (i32.const 1032)))
    (call $require
      (call $path_open
        (i32.sub (i32.load8_u (i32.load (i32.const 1028))) (i32.const 48))
        (i32.const 1) ;; follow symbolic links
        (local.get $path) (call $length (local.get $path))
        (i32.const 1) ;; create
        (i64.const 64) ;; right to write
        (i64.const 0)
        (i32.const 0)
        (i32.const 16)))
    (i32.store (i32.const 0) (i32.const 64))
    (i32.store (i32.const 4) (i32.const 8))
    (call $require (call $fd_write (i32.load (i32.const 16)) (i32.const 0) (i32.const 1) (i32.const 8)))))

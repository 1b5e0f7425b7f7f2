;; Exits with the decimal number in its first argument.
(module
  (import "wasi_snapshot_preview1" "args_get" (func $args_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (local $at i32) (local $code i32)
    (drop (call $args_get (i32.const 1024) (i32.const 2048)))
    (local.set $at (i32.load (i32.const 1028)))
    (block $done
      (loop $next
        (br_if $done (i32.eqz (i32.load8_u (local.get $at))))
        (local.set $code (i32.add (i32.mul (local.get $code) (i32.const 10))
                                  (i32.sub (i32.load8_u (local.get $at)) (i32.const 48))))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br $next)))
    (call $proc_exit (local.get $code))))

;; The program of the demonstration image: greets, then repeats its arguments, one a line.
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args_get (param i32 i32) (result i32)))
  (memory (export "memory") 2)
  (data (i32.const 64) "Hello from a WebAssembly container.\n")
  ;; 0: one iovec, 8: bytes written, 16: argc, 20: size of the arguments, 1024: pointers, 8192: the arguments
  (func $print (param $address i32) (param $length i32)
    (i32.store (i32.const 0) (local.get $address))
    (i32.store (i32.const 4) (local.get $length))
    (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
  (func (export "_start")
    (local $n i32) (local $address i32) (local $end i32)
    (call $print (i32.const 64) (i32.const 36))
    (drop (call $args_sizes_get (i32.const 16) (i32.const 20)))
    ;; more than fits is not repeated
    (if (i32.or (i32.gt_u (i32.load (i32.const 16)) (i32.const 1700))
                (i32.gt_u (i32.load (i32.const 20)) (i32.const 100000)))
      (then (return)))
    (drop (call $args_get (i32.const 1024) (i32.const 8192)))
    (local.set $n (i32.const 1))
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $n) (i32.load (i32.const 16))))
        (local.set $address (i32.load (i32.add (i32.const 1024) (i32.mul (local.get $n) (i32.const 4)))))
        (local.set $end (local.get $address))
        (block $zero
          (loop $more
            (br_if $zero (i32.eqz (i32.load8_u (local.get $end))))
            (local.set $end (i32.add (local.get $end) (i32.const 1)))
            (br $more)))
        (i32.store8 (local.get $end) (i32.const 10)) ;; the terminating NUL becomes the end of the line
        (call $print (local.get $address) (i32.add (i32.sub (local.get $end) (local.get $address)) (i32.const 1)))
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (br $next)))))

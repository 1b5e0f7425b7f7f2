"""The wire formats we share with containerd and Kubernetes: .proto files and the stubs made from them.

`protos/` holds our own descriptions with the peers' package, message and field names and numbers; `gen/` is what
`make proto` makes of them and is never edited. Import by full path, for example
`from kuasar.api.gen.containerd.task.v3 import task_pb2, task_pb2_grpc`.

==================================================  =====================================  ==========================
module below kuasar.api.gen                         protobuf package                       who uses it
==================================================  =====================================  ==========================
containerd.sandbox.v1.controller_pb2(_grpc)         containerd.services.sandbox.v1         gateway: Sandbox API
containerd.task.v3.task_pb2(_grpc), v2 likewise     containerd.task.v3, .v2                gateway: Task API
containerd.types.{mount,platform,metrics,           containerd.types                       parts of the two above
descriptor,event,sandbox}_pb2
containerd.types.introspection_pb2                  containerd.types                       shim: what it says of itself
containerd.types.task_pb2                           containerd.v1.types                    Status, ProcessInfo
containerd.events.task_pb2                          containerd.events                      gateway: what it announces
containerd.events.forward_pb2                       containerd.services.events.ttrpc.v1    gateway: how it announces
containerd.runc.v1.options_pb2                      containerd.runc.v1                     options of a runtime
containerd.runtimeoptions.v1.options_pb2            runtimeoptions.v1                      options of a runtime
containerd.cgroups.v1.metrics_pb2, v2 likewise      io.containerd.cgroups.v1, .v2          Stats and Metrics answers
ttrpc.ttrpc_pb2                                     ttrpc                                  gateway: ttrpc itself
cri.v1.{common,pod,container,stats,runtime,image}   runtime.v1                             PodSandboxConfig in Create,
_pb2, cri.v1.{runtime,image}_pb2_grpc                                                      the CRI client
==================================================  =====================================  ==========================

protobuf keeps one pool of names per process: a name must be described by exactly one file. So nothing here repeats
a message of another package on PyPI, and nobody else may register these.

containerd's `Any.type_url` is the bare message name (`io.containerd.cgroups.v1.Metrics`), without the
"type.googleapis.com/" that protobuf's own `Any.Pack` puts in front: use `kuasar.api.anypb`.
"""

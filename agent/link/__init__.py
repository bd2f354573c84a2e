"""Everything that speaks gRPC: enrolment, the stream, files and metadata from the control plane."""

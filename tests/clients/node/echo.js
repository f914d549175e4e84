// The contract, read from protos/ when the program starts: nothing is generated.
import path from "node:path";
import { loadPackageDefinition } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

export const definition = loadSync("services/echo/v1/echo.proto", {
  includeDirs: [path.join(import.meta.dirname, "../../../protos")],
  defaults: true, // fields that are not set read as 0, "" and so on
  enums: String,
  keepCase: true,
  longs: Number, // exact up to 2^53; String beyond
});

export const { Echo } = loadPackageDefinition(definition).services.echo.v1;
